-- Frees what ARGV[1] holds. KEYS: tombstone; per name lock, info, channel. ARGV: op, life of a tombstone in ms or 0.
-- The tombstone refuses an acquisition of the same op that is still on its way.
local freed = 0
for i = 2, #KEYS, 3 do
  if redis.pcall('GET', KEYS[i]) == ARGV[1] then
    redis.call('DEL', KEYS[i], KEYS[i + 1])
    redis.call('PUBLISH', KEYS[i + 2], '')
    freed = freed + 1
  end
end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], '1', 'PX', ARGV[2]) end
return freed
