-- Put an event off: it stays pending, and is due after a while.
-- KEYS: owners, stream, later, data
-- ARGV: group, member, shard, id, attempt, delay (ms), what comes with it again
-- Returns nothing where the shard is not this member's.
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[2] then
  return false
end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.ceil(time[2] / 1000) + tonumber(ARGV[6])
redis.call('ZADD', KEYS[3], string.format('%.0f', due), ARGV[4])
redis.call('HSET', KEYS[4], ARGV[4], ARGV[7])
redis.call(
  'XCLAIM', KEYS[2], ARGV[1], 'dispytch', 0, ARGV[4], 'RETRYCOUNT', ARGV[5], 'JUSTID'
)
return 1
