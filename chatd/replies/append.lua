-- Append one durable event to the session's log, once.
-- KEYS: session hash, log stream, open responses, proposals hash.
-- ARGV: epoch, event id, sealed event, owner ('' when no run), response_id, 1 when it ends the run,
--       most events kept, ttl_ms, doorbell channel, session key, sealed active patient ('' keeps, '-' clears),
--       1 when a person's command made the event ('' otherwise), the appending node,
--       then pairs of proposal id and sealed proposal.
-- Returns: {'lost'} | {'fenced'} | {'again', seq, epoch now} | {'appended', seq, epoch now}.
local session, log, open, proposals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch = epoch_of(session, ARGV[1])
if not epoch then
  return {'lost'}
end
local again = redis.call('HGET', session, 'o:' .. ARGV[2])
if again then
  return {'again', tonumber(again), epoch}
end
if ARGV[4] ~= '' and redis.call('HGET', session, 'w:' .. ARGV[5]) ~= ARGV[4] then
  return {'fenced'}
end
local seq = redis.call('HINCRBY', session, 'seq', 1)
redis.call('XADD', log, 'MAXLEN', ARGV[7], seq .. '-0', 'k', ARGV[2], 'e', ARGV[3])
redis.call('HSET', session, 'o:' .. ARGV[2], seq)
if ARGV[6] == '1' then
  redis.call('HDEL', session, 'q:' .. ARGV[5], 'w:' .. ARGV[5], 'u:' .. ARGV[5])
  redis.call('SREM', open, ARGV[5])
end
if ARGV[11] == '-' then
  redis.call('HDEL', session, 'patient')
elseif ARGV[11] ~= '' then
  redis.call('HSET', session, 'patient', ARGV[11])
end
if ARGV[12] ~= '' then
  -- By Redis's own clock, as in open.lua.
  local time = redis.call('TIME')
  redis.call('HSET', session, 'acted', time[1] * 1000 + math.floor(time[2] / 1000))
end
for i = 14, #ARGV, 2 do
  redis.call('HSET', proposals, ARGV[i], ARGV[i + 1])
end
for _, key in ipairs({session, log, open, proposals}) do
  redis.call('PEXPIRE', key, ARGV[8])
end
redis.call('PUBLISH', ARGV[9], ARGV[10] .. ' ' .. epoch .. ' ' .. seq .. ' ' .. ARGV[13])
return {'appended', seq, epoch}
