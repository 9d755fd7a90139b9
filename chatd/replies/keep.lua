-- Keep a session that has a phone or a run on this node: extend its life, renew this node's runs, take over
-- runs whose owner has stopped renewing.
-- KEYS: session hash, log stream, open responses, proposals hash.  ARGV: epoch, owner, now_ms, lease_ms, ttl_ms.
-- Returns: {'lost'} | {'kept', last seq, response_id, sealed request, ...} with the runs just taken over.
local session, open = KEYS[1], KEYS[3]
if redis.call('HGET', session, 'epoch') ~= ARGV[1] then
  return {'lost'}
end
local now = tonumber(ARGV[3])
local reply = {'kept', tonumber(redis.call('HGET', session, 'seq'))}
for _, response_id in ipairs(redis.call('SMEMBERS', open)) do
  local owner = redis.call('HGET', session, 'w:' .. response_id)
  local lapsed = tonumber(redis.call('HGET', session, 'u:' .. response_id) or '0') < now
  if owner == ARGV[2] or lapsed then
    redis.call('HSET', session, 'w:' .. response_id, ARGV[2], 'u:' .. response_id, now + tonumber(ARGV[4]))
    if owner ~= ARGV[2] then
      reply[#reply + 1] = response_id
      reply[#reply + 1] = redis.call('HGET', session, 'q:' .. response_id)
    end
  end
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[5])
end
return reply
