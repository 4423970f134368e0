-- Grants all names to ARGV[1] or none.
-- KEYS: tombstone; per name lock, fence, info, sharers; per requirement lock, fence.
-- ARGV: op, ttl in ms, 'clock' or 'quorum', number of names, rest of the info; per requirement the counter.
local op, ttl, n = ARGV[1], ARGV[2], tonumber(ARGV[4])
if redis.call('EXISTS', KEYS[1]) == 1 then return {'cancelled'} end
for r = 1, #ARGV - 5 do
  local at = 2 * r + 4 * n
  local v = redis.pcall('GET', KEYS[at])
  if type(v) ~= 'string' or redis.call('GET', KEYS[at + 1]) ~= ARGV[5 + r] then
    return {'unmet', r - 1, type(v) == 'string' and v or ''}
  end
end
local time = redis.call('TIME')
local floor = math.floor((time[1] * 1000000 + time[2]) / 16)
local mine, tokens = {}, {}
for i = 1, n do
  local k, f, info, sharers = KEYS[4 * i - 2], KEYS[4 * i - 1], KEYS[4 * i], KEYS[4 * i + 1]
  local v = redis.pcall('GET', k)
  if type(v) == 'table' then
    return {'foreign', i - 1, redis.call('TYPE', k)['ok'], redis.call('PTTL', k)}
  end
  if v and v ~= op then
    local who = redis.call('GET', info)
    if not who then who = redis.call('HVALS', sharers)[1] or false end
    return {'held', i - 1, v, redis.call('PTTL', k), who}
  end
  mine[i] = v == op
  local had = redis.call('GET', f)
  local number = had and tonumber(had)
  if had and not number then return {'corrupt', i - 1} end
  if mine[i] and had then
    tokens[i] = had
  else
    local token = floor
    if number and (ARGV[3] == 'quorum' or number + 1 > floor) then token = number + 1 end
    if token >= 281474976710656 then return {'range', i - 1} end
    tokens[i] = string.format('%.0f', token)
  end
end
local since = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local text = op .. '\n{"since":' .. since .. ',' .. ARGV[5]
for i = 1, n do
  local k, f, info = KEYS[4 * i - 2], KEYS[4 * i - 1], KEYS[4 * i]
  if mine[i] then
    redis.call('PEXPIRE', k, ttl)
    redis.call('PEXPIRE', info, ttl)
  else
    redis.call('SET', k, op, 'PX', ttl)
    redis.call('SET', info, text, 'PX', ttl)
  end
  redis.call('SET', f, tokens[i])
end
return {'ok', unpack(tokens)}
