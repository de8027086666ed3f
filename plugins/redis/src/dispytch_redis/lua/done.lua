-- Settle an event that had been put off.
-- KEYS: stream, later, data   ARGV: group, id
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[2])
return redis.call('HDEL', KEYS[3], ARGV[2])
