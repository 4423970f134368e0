-- Extends every lease of ARGV[1] by ARGV[2] ms, or none. KEYS: per name lock, info, broken. 2: one was ended by force.
for i = 1, #KEYS, 3 do
  if redis.pcall('GET', KEYS[i]) ~= ARGV[1] then
    return {redis.call('GET', KEYS[i + 2]) == ARGV[1] and 2 or 0}
  end
end
for i = 1, #KEYS, 3 do
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
  redis.call('PEXPIRE', KEYS[i + 1], ARGV[2])
end
local time = redis.call('TIME')
return {1, time[1], time[2]}
