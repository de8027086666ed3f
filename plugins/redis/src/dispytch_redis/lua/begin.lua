-- How far a group is with a shard. A group that is not there any more is made again.
-- KEYS: stream, later, data   ARGV: group
-- Returns the last id that was delivered, whether the group had to be made, and in how many ms the
-- first of what was put off is due.
local function delivered()
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
  for _, group in ipairs(groups) do
    local told = {}
    for i = 1, #group, 2 do
      told[group[i]] = group[i + 1]
    end
    if told['name'] == ARGV[1] then
      return told['last-delivered-id']
    end
  end
end

local last, made = delivered(), 0
if not last then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
  redis.call('DEL', KEYS[2], KEYS[3])
  last, made = '0-0', 1
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if not first then
  return {last, made, false}
end
local time = redis.call('TIME')
return {last, made, math.max(0, tonumber(first) - time[1] * 1000 - math.floor(time[2] / 1000))}
