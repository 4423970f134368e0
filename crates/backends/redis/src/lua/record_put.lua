-- Writes ARGV[2] if the version is ARGV[1] ('' for none), for ARGV[3] ms (0: for ever). KEYS: record, versions.
local version = redis.call('HGET', KEYS[1], 'v')
if (version or '') ~= ARGV[1] then
  if not version then return {0} end
  return {0, version, redis.call('HGET', KEYS[1], 'd')}
end
local written = redis.call('INCR', KEYS[2])
redis.call('HSET', KEYS[1], 'v', written, 'd', ARGV[2])
if ARGV[3] == '0' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return {1, tostring(written)}
