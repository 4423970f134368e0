-- Deletes the record if its version is ARGV[1]; the counter of versions stays. KEYS: record.
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
