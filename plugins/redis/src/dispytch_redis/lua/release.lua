-- Give shards to others.
-- KEYS: owners, changes   ARGV: member, shard, ...
-- First what a server that is out of memory refuses: nothing is done without the others knowing.
local change = redis.call('XADD', KEYS[2], 'MAXLEN', 8, '*', 'by', ARGV[1])
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return change
