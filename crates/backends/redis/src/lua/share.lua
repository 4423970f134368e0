-- Grants a share. The text of line.lua comes before this one's.
-- KEYS: tombstone, lock, fence, sharers, ends of shares, info, line, places.
-- ARGV: op, ttl in ms, limit (0: readers without one), rest of the info, what the lock says while it is shared,
-- permits, 'try' or 'join'.
-- A sharer is `limit token info`, or `limitxpermits token info` where it has several.
local op, ttl, limit, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[6])
if redis.call('EXISTS', KEYS[1]) == 1 then return {'cancelled'} end
local v = redis.pcall('GET', KEYS[2])
if type(v) == 'table' then
  return {'foreign', 0, redis.call('TYPE', KEYS[2])['ok'], redis.call('PTTL', KEYS[2])}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = v == ARGV[5] and redis.call('HGET', KEYS[4], op)
local before, last, place = {}, 0, nil
if redis.call('EXISTS', KEYS[7]) == 1 then
  before, last, place = ahead(KEYS[7], KEYS[8], op, now)
end
-- Its semaphore may have been given another limit while it waited.
if place and limit ~= 0 then limit = tonumber(string.match(place, '^(%d+)')) or limit end
local function differs(theirs)
  step_out(KEYS[7], KEYS[8], op)
  return {'mismatch', 0, string.format('%.0f', theirs)}
end
if limit ~= 0 and count > limit then return differs(limit) end
if not mine then for _, other in ipairs(before) do
  local theirs = tonumber(string.match(other, '^(%d+)') or '0')
  if theirs ~= 0 and limit ~= 0 and theirs ~= limit then return differs(theirs) end
end end
-- In the way: it waits, where it wants to, or is told by whom and for how long.
local function refused(left, answer)
  if ARGV[7] ~= 'join' then return answer end
  stand(KEYS[7], KEYS[8], op, now, ttl, string.format('%.0fx%.0f 0 {', limit, count) .. ARGV[4])
  return {'queued', #before, math.max(left, last - now)}
end
if v and v ~= ARGV[5] then
  local left = redis.call('PTTL', KEYS[2])
  return refused(left, {'held', 0, v, left, redis.call('GET', KEYS[6])})
end
if not v then redis.call('DEL', KEYS[4], KEYS[5]) end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', string.format('%.0f', now))) do
  redis.call('ZREM', KEYS[5], gone)
  redis.call('HDEL', KEYS[4], gone)
end
local ends = string.format('%.0f', now + ttl)
-- It may have been one that ended.
mine = mine and redis.call('HGET', KEYS[4], op)
local token
if mine then
  token = string.match(mine, '^%S+ (%d+) ')
else
  local taken, sharer = count, nil
  for _, other in ipairs(redis.call('HVALS', KEYS[4])) do
    local theirs, many = string.match(other, '^(%d+)x?(%d*)')
    if (theirs == '0') ~= (limit == 0) then
      local left = redis.call('PTTL', KEYS[2])
      return refused(left, {'held', 0, ARGV[5], left, other})
    end
    if tonumber(theirs) ~= limit then return differs(tonumber(theirs)) end
    taken, sharer = taken + (tonumber(many) or 1), other
  end
  if limit ~= 0 and taken > limit then
    -- The first that ends may leave room.
    local first = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2]
    local left = math.max(tonumber(first or now) - now, 0)
    return refused(left, {'held', 0, ARGV[5], left, sharer})
  end
  -- Nobody who waits is overtaken.
  if #before > 0 then return refused(0, {'waits', 0, before[1], last - now}) end
  local next = math.floor((time[1] * 1000000 + time[2]) / 16)
  local had = redis.call('GET', KEYS[3])
  local number = tonumber(had or '0')
  if not number then return {'corrupt', 0} end
  if number + 1 > next then next = number + 1 end
  if next >= 281474976710656 then return {'range', 0} end
  token = string.format('%.0f', next)
  redis.call('SET', KEYS[3], token)
  local size = string.format('%.0f', limit)
  if count > 1 then size = size .. 'x' .. ARGV[6] end
  if place then step_out(KEYS[7], KEYS[8], op) end
  redis.call('HSET', KEYS[4], op, size .. ' ' .. token .. ' {"since":' .. string.format('%.0f', now) .. ',' .. ARGV[4])
end
redis.call('ZADD', KEYS[5], ends, op)
local longest = redis.call('ZRANGE', KEYS[5], -1, -1, 'WITHSCORES')[2]
redis.call('SET', KEYS[2], ARGV[5])
for i = 2, 5 do if i ~= 3 then redis.call('PEXPIREAT', KEYS[i], longest) end end
return {'ok', token}
