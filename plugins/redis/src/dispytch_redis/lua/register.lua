-- Make a topic known; returns how many shards it has.
-- KEYS: topics, new topics   ARGV: topic, shards
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then
  return tonumber(known)
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'topic', ARGV[1])
return tonumber(ARGV[2])
