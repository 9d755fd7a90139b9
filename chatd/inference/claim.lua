-- Give a worker the next jobs.
-- ARGV: limits, now_ms, worker, open slots, slots for the top lane only.
-- Returns: for each job {job_id, fence, attempt, lane, deadline_ms, queue_ms, sealed job}.
local worker, claimed, ids = ARGV[3], {}, end_late()
local function take(lane)
  local head = redis.call('ZPOPMIN', lane.turns)
  local doctor, turn = head[1], head[2]
  if not doctor then
    redis.call('DEL', lane.key)
    return false
  end
  local waiting = redis.call('ZRANGEBYLEX', lane.key, bounds_of(doctor))
  if not waiting[1] then
    return false
  end
  redis.call('ZREM', lane.key, waiting[1])
  if waiting[2] then
    redis.call('ZADD', lane.turns, next_number(), doctor)
  end
  local id = string.match(waiting[1], '|%d+|(.*)$')
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', AGEING, id)
  local job = load_job(id)
  if not job then
    return false
  end
  -- Above every fence there ever was, also when Redis has lost its memory since.
  local fence = string.format('%.0f', math.max(tonumber(redis.call('HGET', STATE, 'fence') or '0') + 1, NOW))
  job.attempt = job.attempt + 1
  redis.call('HSET', STATE, 'fence', fence)
  redis.call('HSET', job_key(id), 'state', 'running', 'attempt', job.attempt, 'fence', fence, 'worker', worker,
    'claimed', NOW, 'turn', turn)
  redis.call('ZADD', RUNNING, NOW, id)
  redis.call('ZADD', LEASES, NOW + LIMITS.lease_ms, id)
  redis.call('PEXPIRE', RUNNING, LIMITS.life_ms)
  redis.call('PEXPIRE', LEASES, LIMITS.life_ms)
  add_event(job, 'begun')
  keep_for(id, LIMITS.life_ms)
  ids[#ids + 1] = id
  claimed[#claimed + 1] = {id, fence, job.attempt, lane.name, job.deadline, NOW - job.at,
    redis.call('HGET', job_key(id), 'payload')}
  return true
end
-- The lane of the next open claim, and how many in a row have then gone to the top lane while others waited.
local function choose(run)
  local top, other = redis.call('EXISTS', TOP.key) == 1, nil
  for i = #LIMITS.lanes, 2, -1 do
    if redis.call('EXISTS', LIMITS.lanes[i].key) == 1 then
      other = LIMITS.lanes[i]
    end
  end
  if top and not other then
    return TOP, 0
  end
  if top and run < LIMITS.stat_run - 1 then
    return TOP, run + 1
  end
  return other, 0
end
local open, run = tonumber(ARGV[4]), tonumber(redis.call('HGET', STATE, 'run') or '0')
while open > 0 do
  local lane, next_run = choose(run)
  if not lane then
    break
  end
  if take(lane) then
    open, run = open - 1, next_run
  end
end
redis.call('HSET', STATE, 'run', run)
redis.call('PEXPIRE', STATE, LIMITS.state_ms)
local urgent = tonumber(ARGV[5])
while urgent > 0 and redis.call('EXISTS', TOP.key) == 1 do
  if take(TOP) then
    urgent = urgent - 1
  end
end
ring('results', ids)
return claimed
