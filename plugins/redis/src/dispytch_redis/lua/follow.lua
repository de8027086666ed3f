-- Read on, without a group.
-- KEYS: stream, ...   ARGV: limit, bytes, id, ...
-- Returns the entries of each stream that has some after that id, by its place, counted from 0.
local left, bytes, taken = tonumber(ARGV[1]), tonumber(ARGV[2]), {}
local step, largest = 4, 1 -- few at first: nobody knows how large they are
for i, key in ipairs(KEYS) do
  local after = ARGV[i + 2]
  local more = true
  while more and left > 0 and bytes > 0 do
    local count = math.min(left, step, math.ceil(bytes / largest))
    local entries = redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', count)
    if #entries > 0 then
      taken[#taken + 1] = {i - 1, entries}
      after = entries[#entries][1]
      left = left - #entries
      for _, entry in ipairs(entries) do
        local size = 0
        for _, text in ipairs(entry[2]) do
          size = size + #text
        end
        bytes = bytes - size
        largest = math.max(largest, size)
      end
      step = math.min(step * 4, 50)
    end
    more = #entries == count
  end
end
return taken
