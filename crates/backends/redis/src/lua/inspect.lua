-- Everything known about one name. KEYS: lock, fence, info, sharers, ends of shares, places.
local kind = redis.call('TYPE', KEYS[1])['ok']
local held = kind == 'string' and redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local at = time[1] * 1000 + math.floor(time[2] / 1000)
local now, waiting = string.format('%.0f', at), 0
for _, place in ipairs(redis.call('HVALS', KEYS[6])) do
  if tonumber(string.match(place, '^(%d+)') or '0') > at then waiting = waiting + 1 end
end
return {kind, held, redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3]),
  redis.call('HGETALL', KEYS[4]), redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. now, '+inf', 'WITHSCORES'), now, waiting}
