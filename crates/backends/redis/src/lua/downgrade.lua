-- Makes the holder ARGV[1] of a lock its only reader, for as long as it has left.
-- KEYS: lock, fence, sharers, ends of shares, info, channel. ARGV[2]: what a shared lock says.
local op = ARGV[1]
local v = redis.pcall('GET', KEYS[1])
if v == ARGV[2] then return redis.call('HEXISTS', KEYS[3], op) end
if v ~= op then return 0 end
local left, token = redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2])
local json = string.match(redis.call('GET', KEYS[5]) or '', '^[^\n]*\n([^\n]*)')
if left <= 0 or not token or not json then return 0 end
local time = redis.call('TIME')
local ends = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + left)
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
redis.call('HSET', KEYS[3], op, '0 ' .. token .. ' ' .. json)
redis.call('ZADD', KEYS[4], ends, op)
redis.call('SET', KEYS[1], ARGV[2])
for _, k in ipairs({KEYS[1], KEYS[3], KEYS[4]}) do redis.call('PEXPIREAT', k, ends) end
redis.call('PUBLISH', KEYS[6], '')
return 1
