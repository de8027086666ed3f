-- Take what was put off and is due: it is not put off any more, and what comes with it is kept.
-- KEYS: owners, stream, later, data   ARGV: group, member, shard, limit, bytes
-- Returns nothing where the shard is not this member's; else what is taken (id, attempt, fields,
-- what comes with it), and in how many ms the next one is due.
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[2] then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bytes, taken = tonumber(ARGV[5]), {}
for _, id in ipairs(
  redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[4])
) do
  redis.call('ZREM', KEYS[3], id)
  local entry = redis.call('XCLAIM', KEYS[2], ARGV[1], 'dispytch', 0, id)[1]
  if entry then
    local fields = entry[2]
    local attempt = redis.call('XPENDING', KEYS[2], ARGV[1], id, id, 1)[1][4]
    taken[#taken + 1] = {id, attempt, fields, redis.call('HGET', KEYS[4], id)}
    for _, text in ipairs(fields) do
      bytes = bytes - #text
    end
    if bytes <= 0 then
      break
    end
  else -- it was settled, or deleted
    redis.call('HDEL', KEYS[4], id)
  end
end
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
return {taken, first and math.max(0, tonumber(first) - now) or false}
