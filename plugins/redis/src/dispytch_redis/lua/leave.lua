-- Be a member no more.
-- KEYS: members, subscriptions, owners, changes   ARGV: member
-- First what a server that is out of memory refuses: nothing is done without the others knowing.
local change = redis.call('XADD', KEYS[4], 'MAXLEN', 8, '*', 'by', ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
local owned = redis.call('HGETALL', KEYS[3])
for i = 1, #owned, 2 do
  if owned[i + 1] == ARGV[1] then
    redis.call('HDEL', KEYS[3], owned[i])
  end
end
return change
