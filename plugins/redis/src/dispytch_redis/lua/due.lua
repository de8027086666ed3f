-- Take what was put off and is due. While it is under way it is due at infinity.
-- KEYS: owners, stream, later, data   ARGV: group, member, shard, limit
-- Returns nothing where the shard is not this member's; else the entries, each with what comes with
-- it again, and in how many ms the next one is due.
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[2] then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for _, id in ipairs(
  redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[4])
) do
  local claimed = redis.call('XCLAIM', KEYS[2], ARGV[1], 'dispytch', 0, id)
  if claimed[1] then
    redis.call('ZADD', KEYS[3], 'inf', id)
    taken[#taken + 1] = {id, claimed[1][2], redis.call('HGET', KEYS[4], id)}
  else -- it was settled, or deleted
    redis.call('ZREM', KEYS[3], id)
    redis.call('HDEL', KEYS[4], id)
  end
end
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
if not first or first == 'inf' then
  return {taken, false}
end
return {taken, math.max(0, tonumber(first) - now)}
