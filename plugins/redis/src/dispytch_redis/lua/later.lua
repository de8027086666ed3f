-- Put an event off: it stays pending, and is due after a while.
-- KEYS: owners, later, data   ARGV: member, shard, id, delay (ms), what comes with it again
-- Returns nothing where the shard is not this member's.
if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[1] then
  return false
end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.ceil(time[2] / 1000) + tonumber(ARGV[4])
redis.call('ZADD', KEYS[2], string.format('%.0f', due), ARGV[3])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[5])
return 1
