-- Writes ARGV[2] if no later token than ARGV[1] was seen, and remembers the token in the same step.
-- KEYS: fence; value. Without ARGV[2] only the token is remembered. Tokens are digits: no number of Lua holds them.
local seen = redis.call('GET', KEYS[1]) or '0'
local token = ARGV[1]
if #token < #seen or (#token == #seen and token < seen) then return seen end
redis.call('SET', KEYS[1], token)
if ARGV[2] then redis.call('SET', KEYS[2], ARGV[2]) end
return false
