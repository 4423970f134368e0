-- Gives a share back. KEYS: tombstone, lock, sharers, ends of shares, channel.
-- ARGV: op, life of a tombstone in ms or 0, what a shared lock says.
local freed = 0
if redis.pcall('GET', KEYS[2]) == ARGV[3] then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local ends = redis.call('ZSCORE', KEYS[4], ARGV[1])
  if ends and tonumber(ends) > now then freed = 1 end
  redis.call('ZREM', KEYS[4], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
  local last = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2]
  if last and tonumber(last) > now then
    for i = 2, 4 do redis.call('PEXPIREAT', KEYS[i], last) end
  else
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
  end
  redis.call('PUBLISH', KEYS[5], '')
end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], '1', 'PX', ARGV[2]) end
return freed
