-- Take over what was delivered and is not settled.
-- KEYS: owners, stream, later   ARGV: group, member, shard, id, ...
-- Returns nothing where the shard is not this member's; else the entries, without those that were
-- put off, and whether some of these were under way: they are due now.
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[2] then
  return false
end
local wanted, due = {}, 0
for i = 4, #ARGV do
  local at = redis.call('ZSCORE', KEYS[3], ARGV[i])
  if not at then
    wanted[#wanted + 1] = ARGV[i]
  elseif at == 'inf' then
    redis.call('ZADD', KEYS[3], 0, ARGV[i])
    due = 1
  end
end
if #wanted == 0 then
  return {{}, due, 0}
end
local entries = redis.call('XCLAIM', KEYS[2], ARGV[1], 'dispytch', 0, unpack(wanted))
return {entries, due, #wanted - #entries}
