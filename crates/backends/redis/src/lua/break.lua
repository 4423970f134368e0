-- Frees a lock by force. KEYS: lock, fence, info, sharers, ends of shares, channel, broken. ARGV: 'burn' or 'only'.
-- Whose lock it was is told at the next renewal, which comes before the lock would have ended.
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind ~= 'none' and kind ~= 'string' then return {'foreign', 0, kind, redis.call('PTTL', KEYS[1])} end
local token = '0'
if ARGV[1] == 'burn' then
  local time = redis.call('TIME')
  local next = math.floor((time[1] * 1000000 + time[2]) / 16)
  local number = tonumber(redis.call('GET', KEYS[2]) or '0')
  if not number then return {'corrupt', 0} end
  if number + 1 > next then next = number + 1 end
  if next >= 281474976710656 then return {'range', 0} end
  token = string.format('%.0f', next)
  redis.call('SET', KEYS[2], token)
end
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('SET', KEYS[7], redis.call('GET', KEYS[1]), 'PX', left) end
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4], KEYS[5])
redis.call('PUBLISH', KEYS[6], '')
return {'ok', token}
