-- The line of a name. `line` has the op of each who waits, by arrival; `places` what each says: when its place ends,
-- its ttl, `limitxpermits` (`-` for whoever wants it alone, 0 for readers), 0, and what it says of itself.

-- Who stands before `op`, or everybody: what each says, and when the last of these places ends. Then what `op` says
-- itself. Whoever has not asked for a whole ttl is forgotten.
local function ahead(line, places, op, now)
  local before, last = {}, 0
  for _, other in ipairs(redis.call('ZRANGE', line, 0, -1)) do
    local place = redis.call('HGET', places, other) or ''
    local ends, rest = string.match(place, '^(%d+) %d+ (.*)$')
    if not ends or tonumber(ends) <= now then
      redis.call('ZREM', line, other)
      redis.call('HDEL', places, other)
    elseif other == op then
      return before, last, rest
    else
      before[#before + 1] = rest
      if tonumber(ends) > last then last = tonumber(ends) end
    end
  end
  return before, last, nil
end

-- A place at the end for whoever has none; it lasts as long as its lease would.
local function stand(line, places, op, now, ttl, rest)
  if not redis.call('ZSCORE', line, op) then
    local last = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')[2]
    redis.call('ZADD', line, string.format('%.0f', (tonumber(last) or 0) + 1), op)
  end
  redis.call('HSET', places, op, string.format('%.0f %.0f ', now + ttl, ttl) .. rest)
  for _, k in ipairs({line, places}) do
    if redis.call('PTTL', k) < ttl then redis.call('PEXPIRE', k, ttl) end
  end
end

local function step_out(line, places, op)
  redis.call('ZREM', line, op)
  redis.call('HDEL', places, op)
end
