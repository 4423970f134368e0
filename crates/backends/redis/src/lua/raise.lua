-- Second phase of a quorum: lifts the counters to ARGV[2..], only while ARGV[1] owns every lock.
-- KEYS: per name lock, fence.
for i = 1, #KEYS, 2 do
  if redis.pcall('GET', KEYS[i]) ~= ARGV[1] then return 0 end
end
for i = 1, #KEYS, 2 do
  local wanted = ARGV[1 + (i + 1) / 2]
  local had = tonumber(redis.call('GET', KEYS[i + 1]) or '0')
  if had < tonumber(wanted) then redis.call('SET', KEYS[i + 1], wanted) end
end
return 1
