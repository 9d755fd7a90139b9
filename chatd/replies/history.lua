-- Stands before each script. A session's epoch is BASE.HISTORY. HISTORY names the line of writes that this Redis
-- continues: a replica that is promoted begins a new one. What the old primary had taken in its last moments is lost
-- then, and its sequence numbers are given to other events; so the session goes on under another epoch, with "cut",
-- the last number that both histories mean the same by. BASE stays as long as the session lives.
local function base_of(epoch)
  return string.match(epoch or '', '^[^.]*')
end

local function history()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x%x%x%x%x%x%x%x%x%x)')
end

-- The epoch of the session now, which it may just have been given; nil when there is no session, or another BASE.
local function epoch_of(session, asked)
  local epoch = redis.call('HGET', session, 'epoch')
  if not epoch or (asked and base_of(asked) ~= base_of(epoch)) then
    return nil
  end
  local now = base_of(epoch) .. '.' .. history()
  if now ~= epoch then
    redis.call('HSET', session, 'epoch', now, 'former', epoch, 'cut', redis.call('HGET', session, 'seq'))
  end
  return now
end

