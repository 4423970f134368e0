-- Grants one name to each of several callers, in their order, each exactly as acquire.lua does: that one's text comes
-- before this one's, as the function `one`.
-- KEYS: per caller tombstone, lock, fence, info, sharers, line, places. ARGV: per caller op, ttl in ms, rest of the
-- info.
-- One answer per caller: the token where it is granted, what acquire.lua says where it is not.
local n = #ARGV / 3
local answers, busy, fences, seen, plain = {}, {}, {}, {}, true
for i = 1, n do
  local k = KEYS[7 * i - 5]
  if seen[k] then plain = false end
  seen[k] = true
  busy[3 * i - 2], busy[3 * i - 1], busy[3 * i], fences[i] = KEYS[7 * i - 6], k, KEYS[7 * i - 1], KEYS[7 * i - 4]
end
-- Nearly always every name is another one and free, and nobody waits for it: then the callers share the reads.
plain = plain and redis.call('EXISTS', unpack(busy)) == 0
if plain then
  local time = redis.call('TIME')
  local floor = math.floor((time[1] * 1000000 + time[2]) / 16)
  local had, missing, raised = redis.call('MGET', unpack(fences)), {}, {}
  for i = 1, n do
    local token = floor
    if had[i] then
      local number = tonumber(had[i])
      if not number then plain = false break end
      if number + 1 > floor then token = number + 1 end
    else
      missing[#missing + 1] = fences[i]
    end
    if token >= 281474976710656 then plain = false break end
    answers[i] = string.format('%.0f', token)
    raised[2 * i - 1], raised[2 * i] = fences[i], answers[i]
  end
  -- What is read as nothing may be of another type.
  if plain and #missing > 0 then plain = redis.call('EXISTS', unpack(missing)) == 0 end
  if plain then
    redis.call('MSET', unpack(raised))
    local since = '\n{"since":' .. string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)) .. ','
    for i = 1, n do
      local op, ttl = ARGV[3 * i - 2], ARGV[3 * i - 1]
      redis.call('SET', KEYS[7 * i - 5], op, 'PX', ttl)
      redis.call('SET', KEYS[7 * i - 3], op .. since .. ARGV[3 * i], 'PX', ttl)
    end
    return answers
  end
end
for i = 1, n do
  local keys = {}
  for j = 1, 7 do keys[j] = KEYS[7 * i - 7 + j] end
  local done, answer = pcall(one, keys, {ARGV[3 * i - 2], ARGV[3 * i - 1], 'clock', '1', ARGV[3 * i]})
  if not done then
    -- Its own error and nobody else's. Some versions give a text, some a table.
    local text = type(answer) == 'table' and answer['err'] or tostring(answer)
    answer = {err = string.match(text, '^%-?(%u+ .*)$') or 'ERR ' .. text}
  elseif answer[1] == 'ok' then
    answer = answer[2]
  end
  answers[i] = answer
end
return answers
