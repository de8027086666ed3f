-- Give shards to others.
-- KEYS: owners, changes   ARGV: member, shard, ...
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return redis.call('XADD', KEYS[2], 'MAXLEN', 8, '*', 'by', ARGV[1])
