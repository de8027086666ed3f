-- Append events to a shard, in order, up to the first that fails.
-- KEYS: stream   ARGV: how many arguments belong to the first event, these, ... the next, these, ...
-- Returns their ids, and what failed the one after them.
local ids, at = {}, 1
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  local id = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
  if id.err then
    return {ids, id}
  end
  ids[#ids + 1] = id
  at = at + count + 1
end
return {ids}
