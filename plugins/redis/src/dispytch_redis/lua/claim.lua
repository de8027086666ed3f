-- Take over what was delivered and is not settled.
-- KEYS: owners, stream, later, data
-- ARGV: group, member, shard, bytes, id, attempt, id, attempt, ...
-- Returns nothing where the shard is not this member's; else how many of these were looked at, how
-- many of them are deleted, and those that are not put off: id, attempt, fields, what comes with it.
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[2] then
  return false
end
local bytes, looked, gone, taken = tonumber(ARGV[4]), 0, 0, {}
for i = 5, #ARGV, 2 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  if not redis.call('ZSCORE', KEYS[3], id) then
    local entry = redis.call(
      'XCLAIM', KEYS[2], ARGV[1], 'dispytch', 0, id, 'RETRYCOUNT', attempt
    )[1]
    if entry then
      local fields = entry[2]
      taken[#taken + 1] = {id, tonumber(attempt), fields, redis.call('HGET', KEYS[4], id)}
      for _, text in ipairs(fields) do
        bytes = bytes - #text
      end
    else
      redis.call('HDEL', KEYS[4], id)
      gone = gone + 1
    end
  end
  looked = looked + 1
  if bytes <= 0 then
    break
  end
end
return {looked, gone, taken}
