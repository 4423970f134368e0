-- Grants a share. KEYS: tombstone, lock, fence, sharers, ends of shares, info.
-- ARGV: op, ttl in ms, limit (0: readers without one), rest of the info, what the lock says while it is shared, permits.
-- A sharer is `limit token info`, or `limitxpermits token info` where it has several.
local op, ttl, limit, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[6])
if redis.call('EXISTS', KEYS[1]) == 1 then return {'cancelled'} end
local v = redis.pcall('GET', KEYS[2])
if type(v) == 'table' then
  return {'foreign', 0, redis.call('TYPE', KEYS[2])['ok'], redis.call('PTTL', KEYS[2])}
end
if v and v ~= ARGV[5] then
  return {'held', 0, v, redis.call('PTTL', KEYS[2]), redis.call('GET', KEYS[6])}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not v then redis.call('DEL', KEYS[4], KEYS[5]) end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', string.format('%.0f', now))) do
  redis.call('ZREM', KEYS[5], gone)
  redis.call('HDEL', KEYS[4], gone)
end
local ends = string.format('%.0f', now + ttl)
local mine = redis.call('HGET', KEYS[4], op)
local token
if mine then
  token = string.match(mine, '^%S+ (%d+) ')
else
  local taken, last = count, nil
  for _, other in ipairs(redis.call('HVALS', KEYS[4])) do
    local theirs, many = string.match(other, '^(%d+)x?(%d*)')
    if (theirs == '0') ~= (limit == 0) then return {'held', 0, ARGV[5], redis.call('PTTL', KEYS[2]), other} end
    if tonumber(theirs) ~= limit then return {'mismatch', 0, theirs} end
    taken, last = taken + (tonumber(many) or 1), other
  end
  if limit ~= 0 and taken > limit then
    -- The first that ends may leave room.
    local first = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2]
    return {'held', 0, ARGV[5], math.max(tonumber(first or now) - now, 0), last}
  end
  local next = math.floor((time[1] * 1000000 + time[2]) / 16)
  local had = redis.call('GET', KEYS[3])
  local number = tonumber(had or '0')
  if not number then return {'corrupt', 0} end
  if number + 1 > next then next = number + 1 end
  if next >= 281474976710656 then return {'range', 0} end
  token = string.format('%.0f', next)
  redis.call('SET', KEYS[3], token)
  local size = count > 1 and ARGV[3] .. 'x' .. ARGV[6] or ARGV[3]
  redis.call('HSET', KEYS[4], op, size .. ' ' .. token .. ' {"since":' .. string.format('%.0f', now) .. ',' .. ARGV[4])
end
redis.call('ZADD', KEYS[5], ends, op)
local last = redis.call('ZRANGE', KEYS[5], -1, -1, 'WITHSCORES')[2]
redis.call('SET', KEYS[2], ARGV[5])
for i = 2, 5 do if i ~= 3 then redis.call('PEXPIREAT', KEYS[i], last) end end
return {'ok', token}
