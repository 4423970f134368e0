-- Extends a share of ARGV[1] by ARGV[2] ms. KEYS: lock, sharers, ends of shares. ARGV[3]: what a shared lock says.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = redis.call('ZSCORE', KEYS[3], ARGV[1])
if redis.pcall('GET', KEYS[1]) ~= ARGV[3] or not ends or tonumber(ends) <= now then return {0} end
redis.call('ZADD', KEYS[3], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
for i = 1, 3 do redis.call('PEXPIREAT', KEYS[i], last) end
return {1, time[1], time[2]}
