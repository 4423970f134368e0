-- Gives a semaphore another limit. KEYS: lock, sharers, places, channel. ARGV: limit, what a shared lock says.
-- 1: done, or there is nobody; 0: it is no semaphore.
local v = redis.pcall('GET', KEYS[1])
if v and v ~= ARGV[2] then return 0 end
local all, places = v and redis.call('HGETALL', KEYS[2]) or {}, redis.call('HGETALL', KEYS[3])
for i = 2, #all, 2 do
  if string.match(all[i], '^0 ') then return 0 end
end
for i = 2, #places, 2 do
  if not string.match(places[i], '^%d+ %d+ [1-9]') then return 0 end
end
for i = 1, #all, 2 do
  redis.call('HSET', KEYS[2], all[i], ARGV[1] .. string.match(all[i + 1], '^%d+(.*)$'))
end
for i = 1, #places, 2 do
  local at, rest = string.match(places[i + 1], '^(%d+ %d+ )%d+(.*)$')
  redis.call('HSET', KEYS[3], places[i], at .. ARGV[1] .. rest)
end
redis.call('PUBLISH', KEYS[4], '')
return 1
