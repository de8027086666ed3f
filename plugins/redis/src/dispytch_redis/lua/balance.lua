-- Renew a member's lease, take what is free as far as it is its share, and free what the dead have.
-- KEYS: members, subscriptions, owners, changes
-- ARGV: member, lease (ms), whether it is new, last change it knows, topic, shards, topic, ...
-- Returns nothing for a member that the others took for dead; else the last change, and where
-- anything may be different since: what it owns, and of which topics it has how many too many.
local me, lease = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local changed = false

local renewed, since = redis.call('HGET', KEYS[1], me), now
if renewed then
  local till, from = string.match(renewed, '(%d+) (%d+)')
  if tonumber(till) >= now then
    since = tonumber(from)
  end
elseif ARGV[3] == '1' then
  changed = true
else
  return false
end
redis.call('HSET', KEYS[1], me, string.format('%.0f %.0f', now + lease, since))

local topics, shards = {}, {}
for i = 5, #ARGV, 2 do
  topics[#topics + 1] = ARGV[i]
  shards[ARGV[i]] = tonumber(ARGV[i + 1])
end
local subscribed = #topics > 0 and cjson.encode(topics) or '[]'
if redis.call('HGET', KEYS[2], me) ~= subscribed then
  redis.call('HSET', KEYS[2], me, subscribed)
  changed = true
end

-- Whoever has been alive without a break for a third of a lease gave the others time to renew: it
-- may have been the server that stood still.
local may_bury = since + lease / 3 <= now
local alive = {}
local members = redis.call('HGETALL', KEYS[1])
for i = 1, #members, 2 do
  local name, till = members[i], tonumber(string.match(members[i + 1], '%d+'))
  if till < now and may_bury then
    redis.call('HDEL', KEYS[1], name)
    redis.call('HDEL', KEYS[2], name)
    changed = true
  else
    alive[name] = true
  end
end

local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)
last = last[1] and last[1][1] or '0-0'
if not changed and last == ARGV[4] then
  return {last}
end

local owners = {}
local owned = redis.call('HGETALL', KEYS[3])
for i = 1, #owned, 2 do
  if alive[owned[i + 1]] then
    owners[owned[i]] = owned[i + 1]
  else
    redis.call('HDEL', KEYS[3], owned[i])
    changed = true
  end
end

local peers = {}
for name, _ in pairs(alive) do
  for _, topic in ipairs(cjson.decode(redis.call('HGET', KEYS[2], name) or '[]')) do
    if shards[topic] then
      peers[topic] = peers[topic] or {}
      table.insert(peers[topic], name)
    end
  end
end

local ours, surplus = {}, {}
for _, topic in ipairs(topics) do
  local others, place = peers[topic], 0
  table.sort(others)
  for i, name in ipairs(others) do
    if name == me then
      place = i - 1
    end
  end
  -- Another one gets one more for another topic.
  place = (place + tonumber(string.sub(redis.sha1hex(topic), 1, 6), 16)) % #others
  local count = shards[topic]
  local share = math.floor(count / #others)
  if place < count % #others then
    share = share + 1
  end
  local mine, free = 0, {}
  for number = 0, count - 1 do
    local shard = topic .. ':' .. number
    if owners[shard] == me then
      mine = mine + 1
      ours[#ours + 1] = shard
    elseif not owners[shard] then
      free[#free + 1] = shard
    end
  end
  for _, shard in ipairs(free) do
    if mine < share then
      redis.call('HSET', KEYS[3], shard, me)
      mine = mine + 1
      ours[#ours + 1] = shard
    end
  end
  if mine > share then
    surplus[#surplus + 1] = topic
    surplus[#surplus + 1] = mine - share
  end
end

if changed then
  last = redis.call('XADD', KEYS[4], 'MAXLEN', 8, '*', 'by', me)
end
return {last, ours, surplus}
