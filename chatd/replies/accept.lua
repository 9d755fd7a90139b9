-- Accept one question exactly once: the id remembered, the rate counted, the run opened and leased.
-- KEYS: session hash, open responses, rate of the user.
-- ARGV: epoch, client_msg_id, body digest, response_id, sealed request, owner, now_ms, lease_ms, ttl_ms,
--       messages per window, window_ms.
-- Returns: {'lost'} | {'conflict'} | {'limited', retry_after_ms}
--        | {'duplicate' or 'accepted', response_id, remaining, reset_ms}.
local session, open, rate = KEYS[1], KEYS[2], KEYS[3]
local now, window, limit = tonumber(ARGV[7]), tonumber(ARGV[11]), tonumber(ARGV[10])
if not epoch_of(session, ARGV[1]) then
  return {'lost'}
end
redis.call('ZREMRANGEBYSCORE', rate, '-inf', now - window)
local used = redis.call('ZCARD', rate)
local function reset_ms()
  local oldest = redis.call('ZRANGE', rate, 0, 0, 'WITHSCORES')
  if oldest[2] then
    return math.max(1, tonumber(oldest[2]) + window - now)
  end
  return 0
end
local known = redis.call('HGET', session, 'i:' .. ARGV[2])
if known then
  local digest, response_id = string.match(known, '^(%S+) (%S+)$')
  if digest ~= ARGV[3] then
    return {'conflict'}
  end
  return {'duplicate', response_id, math.max(0, limit - used), reset_ms()}
end
if used >= limit then
  return {'limited', reset_ms()}
end
redis.call('ZADD', rate, now, ARGV[4])
redis.call('PEXPIRE', rate, window)
-- When a person acted is told by Redis's own clock, as in open.lua.
local time = redis.call('TIME')
local clock = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', session, 'acted', clock,
  'i:' .. ARGV[2], ARGV[3] .. ' ' .. ARGV[4],
  'q:' .. ARGV[4], ARGV[5],
  'w:' .. ARGV[4], ARGV[6],
  'u:' .. ARGV[4], now + tonumber(ARGV[8]))
redis.call('SADD', open, ARGV[4])
redis.call('PEXPIRE', session, ARGV[9])
redis.call('PEXPIRE', open, ARGV[9])
return {'accepted', ARGV[4], limit - used - 1, reset_ms()}
