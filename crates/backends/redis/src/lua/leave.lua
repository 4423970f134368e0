-- Gives up a place in line; whether there was one. KEYS: line, places. ARGV: op.
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
