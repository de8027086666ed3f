-- Delete the oldest entries of a shard, as far as every group has settled them.
-- KEYS: stream   ARGV: how many to keep (or ''), from when on (ms since 1970, or ''), whether to
-- delete what is not settled, too
-- Returns how many were deleted, and whether there are more.
local MOST = 500

local function before(one, other)
  local ms, seq = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(seq) < tonumber(other_seq))
end

local excess = ARGV[1] ~= '' and redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1]) or 0
if excess <= 0 and ARGV[2] == '' then
  return {0, 0}
end
local oldest = redis.call(
  'XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[2] == '' and math.min(excess, MOST) + 1 or MOST + 1
)
local keep, more = oldest[1] and oldest[1][1], 0
for place, entry in ipairs(oldest) do
  local is_old = ARGV[2] ~= '' and before(entry[1], ARGV[2] .. '-0')
  if place <= excess or is_old then
    keep = oldest[place + 1] and oldest[place + 1][1] or entry[1]
    more = place >= MOST and 1 or 0
  end
end
if not keep then
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
