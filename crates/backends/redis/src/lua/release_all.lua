-- Frees one name for each of several callers, in their order, each as release.lua does.
-- KEYS: per caller tombstone, lock, info, channel. ARGV: per caller op, life of a tombstone in ms or 0.
-- One answer per caller: how many were freed.
local n = #ARGV / 2
local locks, freed, gone, dead = {}, {}, {}, {}
for i = 1, n do locks[i] = KEYS[4 * i - 2] end
local values = redis.call('MGET', unpack(locks))
for i = 1, n do
  local k = locks[i]
  freed[i] = 0
  if not gone[k] and values[i] == ARGV[2 * i - 1] then
    freed[i], gone[k] = 1, true
    dead[#dead + 1], dead[#dead + 2] = k, KEYS[4 * i - 1]
  end
end
if #dead > 0 then redis.call('DEL', unpack(dead)) end
for i = 1, n do
  if freed[i] == 1 then redis.call('PUBLISH', KEYS[4 * i], '') end
  if ARGV[2 * i] ~= '0' then redis.call('SET', KEYS[4 * i - 3], '1', 'PX', ARGV[2 * i]) end
end
return freed
