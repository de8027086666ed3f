-- Read what is new for a group, of the shards that are still this member's.
-- KEYS: owners, changes, stream, ...   ARGV: group, member, limit, bytes, shard, ...
-- Returns the last change of the group, and by place, counted from 0: the shards that are not its
-- own any more, those whose group is gone, and the entries of each.
local group, me, left, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local lost, gone, taken = {}, {}, {}
local step, largest = 4, 1 -- few at first: nobody knows how large they are
for i, owner in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, 5))) do
  if owner ~= me then
    lost[#lost + 1] = i - 1
  else
    local more = true
    while more and left > 0 and bytes > 0 do
      local count = math.min(left, step, math.ceil(bytes / largest))
      local told = redis.pcall(
        'XREADGROUP', 'GROUP', group, 'dispytch', 'COUNT', count, 'STREAMS', KEYS[i + 2], '>'
      )
      if told and told.err then
        if string.sub(told.err, 1, 7) ~= 'NOGROUP' then
          return told
        end
        gone[#gone + 1] = i - 1
        more = false
      elseif told then
        local entries = told[1][2]
        taken[#taken + 1] = {i - 1, entries}
        left = left - #entries
        for _, entry in ipairs(entries) do
          local size = 0
          for _, text in ipairs(entry[2]) do
            size = size + #text
          end
          bytes = bytes - size
          largest = math.max(largest, size)
        end
        more = #entries == count
        step = math.min(step * 4, 50)
      else
        more = false
      end
    end
  end
end
return {last[1] and last[1][1] or '0-0', lost, gone, taken}
