-- Keep a session that has a phone or a run on this node: extend its life, renew the runs this node is working on,
-- take over those that nobody has renewed. One that is this node's by name and unknown to it was opened or taken
-- over by a command whose reply got lost; it is not renewed, so it lapses and is taken like any other.
-- KEYS: session hash, log stream, open responses, proposals hash.
-- ARGV: epoch, owner, now_ms, lease_ms, ttl_ms, 1 to take over lapsed runs, then the response_ids it is working on.
-- Returns: {'lost'} | {'kept', last seq, epoch now, last seq of the asked epoch that still holds (-1: not known),
--          response_id, sealed request, ...} with the runs just taken over.
local session, open = KEYS[1], KEYS[3]
local epoch = epoch_of(session, ARGV[1])
if not epoch then
  return {'lost'}
end
local now = tonumber(ARGV[3])
local found = redis.call('HMGET', session, 'seq', 'former', 'cut')
local seq, cut = tonumber(found[1]), -1
if epoch == ARGV[1] then
  cut = seq
elseif found[2] == ARGV[1] then
  cut = tonumber(found[3])
end
local reply = {'kept', seq, epoch, cut}
local working = {}
for i = 7, #ARGV do
  working[ARGV[i]] = true
end
for _, response_id in ipairs(redis.call('SMEMBERS', open)) do
  local owner = redis.call('HGET', session, 'w:' .. response_id)
  local lapsed = tonumber(redis.call('HGET', session, 'u:' .. response_id) or '0') < now
  local renewed = owner == ARGV[2] and working[response_id]
  local taken = not renewed and lapsed and ARGV[6] == '1'
  if renewed or taken then
    redis.call('HSET', session, 'w:' .. response_id, ARGV[2], 'u:' .. response_id, now + tonumber(ARGV[4]))
  end
  if taken then
    reply[#reply + 1] = response_id
    reply[#reply + 1] = redis.call('HGET', session, 'q:' .. response_id)
  end
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[5])
end
return reply
