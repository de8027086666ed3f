-- Delete the oldest entries of a shard, as far as every group has settled them.
-- KEYS: stream   ARGV: how many to keep (or ''), for how long (ms, or ''), whether to delete what is
-- not settled, too
-- Returns how many were deleted, and whether there are more.
local MOST, BYTES = 500, 1024 * 1024 -- in one step: the server does nothing else meanwhile

local function before(one, other)
  local ms, seq = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(seq) < tonumber(other_seq))
end

local excess = ARGV[1] ~= '' and redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1]) or 0
local since = '0-0'
if ARGV[2] ~= '' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  since = string.format('%.0f-0', math.max(0, now - tonumber(ARGV[2])))
end

-- The first entry to be kept. Whatever its age, the last one of the stream is.
local keep, count, bytes, more, page, start = nil, 0, 0, 0, 1, '-'
while page > 0 and (excess > 0 or since ~= '0-0') do
  local entries = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', page)
  page = #entries == page and math.min(page * 2, 100) or 0
  for _, entry in ipairs(entries) do
    keep = entry[1]
    local is_old = count < excess or before(keep, since)
    if not is_old or count == MOST or bytes > BYTES then
      more, page = is_old and 1 or 0, 0
      break
    end
    count = count + 1
    for _, text in ipairs(entry[2]) do
      bytes = bytes + #text
    end
  end
  start, page = keep and '(' .. keep, bytes > BYTES and math.min(page, 1) or page
end
if count == 0 then
  return {0, 0}
end
if ARGV[3] ~= '1' then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local told = {}
    for i = 1, #group, 2 do
      told[group[i]] = group[i + 1]
    end
    local open = told['last-delivered-id']
    if told['pending'] > 0 then
      open = redis.call('XPENDING', KEYS[1], told['name'])[2]
    elseif before(open, keep) then -- what was delivered last is settled, what comes after is not
      local after = redis.call('XRANGE', KEYS[1], '(' .. open, '+', 'COUNT', 1)
      open = after[1] and after[1][1] or keep
    else
      open = keep
    end
    if before(open, keep) then
      keep, more = open, 0
    end
  end
end
return {redis.call('XTRIM', KEYS[1], 'MINID', keep), more}
