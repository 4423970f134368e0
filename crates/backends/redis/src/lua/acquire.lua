-- Grants all names to ARGV[1] or none. The text of line.lua comes before this one's.
-- KEYS: tombstone; per name lock, fence, info, sharers, line, places; per requirement lock, fence.
-- ARGV: op, ttl in ms, 'clock' or 'quorum' or, for one name, 'join', number of names, rest of the info; per
-- requirement the counter. On a quorum nobody stands in line.
local op, ttl, n = ARGV[1], ARGV[2], tonumber(ARGV[4])
-- Nearly always there is neither a mark nor a line: one question for both.
local quiet = redis.call('EXISTS', KEYS[1], KEYS[6]) == 0
if not quiet and redis.call('EXISTS', KEYS[1]) == 1 then return {'cancelled'} end
for r = 1, #ARGV - 5 do
  local at = 2 * r + 6 * n
  local v = redis.pcall('GET', KEYS[at])
  if type(v) ~= 'string' or redis.call('GET', KEYS[at + 1]) ~= ARGV[5 + r] then
    return {'unmet', r - 1, type(v) == 'string' and v or ''}
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local floor = math.floor((time[1] * 1000000 + time[2]) / 16)
local mine, tokens = {}, {}
for i = 1, n do
  local k, f, info, sharers = KEYS[6 * i - 4], KEYS[6 * i - 3], KEYS[6 * i - 2], KEYS[6 * i - 1]
  local v = redis.pcall('GET', k)
  if type(v) == 'table' then
    return {'foreign', i - 1, redis.call('TYPE', k)['ok'], redis.call('PTTL', k)}
  end
  mine[i] = v == op
  -- Nobody who waits is overtaken.
  local before, last = {}, 0
  if not (quiet and i == 1 or mine[i] or ARGV[3] == 'quorum') and redis.call('EXISTS', KEYS[6 * i]) == 1 then
    before, last = ahead(KEYS[6 * i], KEYS[6 * i + 1], op, now)
  end
  if not mine[i] and (v or #before > 0) then
    if ARGV[3] == 'join' then
      stand(KEYS[6 * i], KEYS[6 * i + 1], op, now, tonumber(ttl), '- 0 {' .. ARGV[5])
      return {'queued', #before, math.max(v and redis.call('PTTL', k) or 0, last - now)}
    end
    if not v then return {'waits', i - 1, before[1], last - now} end
    local who = redis.call('GET', info)
    if not who then who = redis.call('HVALS', sharers)[1] or false end
    return {'held', i - 1, v, redis.call('PTTL', k), who}
  end
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
local text = op .. '\n{"since":' .. string.format('%.0f', now) .. ',' .. ARGV[5]
for i = 1, n do
  local k, f, info = KEYS[6 * i - 4], KEYS[6 * i - 3], KEYS[6 * i - 2]
  if mine[i] then
    redis.call('PEXPIRE', k, ttl)
    redis.call('PEXPIRE', info, ttl)
  else
    redis.call('SET', k, op, 'PX', ttl)
    redis.call('SET', info, text, 'PX', ttl)
    if ARGV[3] == 'join' then step_out(KEYS[6 * i], KEYS[6 * i + 1], op) end
  end
  redis.call('SET', f, tokens[i])
end
return {'ok', unpack(tokens)}
