-- Attaches ARGV[2] to the lease whose counter is ARGV[1]. KEYS: lock, fence, info.
local op = redis.pcall('GET', KEYS[1])
local info = redis.call('GET', KEYS[3])
if type(op) ~= 'string' or not info then return 0 end
-- A foreign holder moves no counter, so the info must be this holder's.
if string.sub(info, 1, #op + 1) ~= op .. '\n' or redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local rest = string.find(info, '\n', #op + 2, true)
if rest then info = string.sub(info, 1, rest - 1) end
redis.call('SET', KEYS[3], info .. '\n' .. ARGV[2], 'KEEPTTL')
return 1
