-- Everything known about one name. KEYS: lock, fence, info, sharers, ends of shares.
local kind = redis.call('TYPE', KEYS[1])['ok']
local held = kind == 'string' and redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return {kind, held, redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3]),
  redis.call('HGETALL', KEYS[4]), redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. now, '+inf', 'WITHSCORES'), now}
