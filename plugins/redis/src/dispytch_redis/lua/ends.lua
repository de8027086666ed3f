-- The last id of each stream.
-- KEYS: stream, ...
local ids = {}
for i, key in ipairs(KEYS) do
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  ids[i] = last[1] and last[1][1] or '0-0'
end
return ids
