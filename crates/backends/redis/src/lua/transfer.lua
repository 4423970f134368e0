-- Hands the lock whose counter is ARGV[1] to the first in line who is called ARGV[2]. 1: it moved.
-- KEYS: lock, fence, info, line, places, broken. That it moved is marked for as long as it would have lasted.
local op, info = redis.pcall('GET', KEYS[1]), redis.call('GET', KEYS[3])
if type(op) ~= 'string' or not info then return 0 end
-- A foreign holder moves no counter, so the info must be this holder's.
if string.sub(info, 1, #op + 1) ~= op .. '\n' or redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, other in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local place = redis.call('HGET', KEYS[5], other) or ''
  local ends, ttl, about = string.match(place, '^(%d+) (%d+) %- 0 ({.*)$')
  if ends and tonumber(ends) > now and cjson.decode(about)['owner'] == ARGV[2] then
    local next = math.max(math.floor((time[1] * 1000000 + time[2]) / 16), tonumber(ARGV[1]) + 1)
    if next >= 281474976710656 then return -1 end
    local left = redis.call('PTTL', KEYS[1])
    if left > 0 then redis.call('SET', KEYS[6], 'moved', 'PX', left) end
    redis.call('SET', KEYS[2], string.format('%.0f', next))
    redis.call('SET', KEYS[1], other, 'PX', ttl)
    local since = '{"since":' .. string.format('%.0f', now) .. ','
    redis.call('SET', KEYS[3], other .. '\n' .. since .. string.sub(about, 2), 'PX', ttl)
    redis.call('ZREM', KEYS[4], other)
    redis.call('HDEL', KEYS[5], other)
    return 1
  end
end
return 0
