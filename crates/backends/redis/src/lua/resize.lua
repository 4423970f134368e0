-- Gives a semaphore another limit. KEYS: lock, sharers, channel. ARGV: limit, what a shared lock says.
-- 1: done, or there is nobody; 0: it is no semaphore.
local v = redis.pcall('GET', KEYS[1])
if not v then return 1 end
if v ~= ARGV[2] then return 0 end
local all = redis.call('HGETALL', KEYS[2])
for i = 2, #all, 2 do
  if string.match(all[i], '^0 ') then return 0 end
end
for i = 1, #all, 2 do
  redis.call('HSET', KEYS[2], all[i], ARGV[1] .. string.match(all[i + 1], '^%d+(.*)$'))
end
redis.call('PUBLISH', KEYS[3], '')
return 1
