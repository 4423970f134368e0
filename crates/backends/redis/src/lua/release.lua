-- Frees what ARGV[1] holds. KEYS: tombstone; per name lock, info, channel. ARGV: op, life of a tombstone in ms or 0, negative
-- when it is needed only where something was not held: the one acquisition that was sent has then not been heard yet.
-- The tombstone refuses an acquisition of the same op that is still on its way.
local freed = 0
for i = 2, #KEYS, 3 do
  if redis.pcall('GET', KEYS[i]) == ARGV[1] then
    redis.call('DEL', KEYS[i], KEYS[i + 1])
    redis.call('PUBLISH', KEYS[i + 2], '')
    freed = freed + 1
  end
end
local life = tonumber(ARGV[2])
if life > 0 or life < 0 and freed < (#KEYS - 1) / 3 then
  redis.call('SET', KEYS[1], '1', 'PX', math.abs(life))
end
return freed
