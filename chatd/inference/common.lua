-- Stands before every script of the queue: its keys and the steps that several scripts share.
--
-- KEYS[1] is the hash of the queue's own numbers; it brings the script to the one slot of the hash tag {queue}. The
-- other keys depend on what is found in it, so they are computed here, all under that tag:
--   chatd:{queue}:state            hash: seq (every number below comes from it), fence, run, service
--   chatd:{queue}:lane:LANE        sorted set of waiting jobs 'DOCTOR|SEQ|job_id', all of score 0: a doctor's jobs
--                                  stand together in the order in which they came
--   chatd:{queue}:turns:LANE       sorted set of the doctors who wait in the lane by their turn
--   chatd:{queue}:deadlines        sorted set of all waiting jobs by deadline
--   chatd:{queue}:ageing           sorted set of waiting jobs by when they are promoted
--   chatd:{queue}:running          sorted set of jobs in a worker's hands by when they were claimed
--   chatd:{queue}:leases           sorted set of the same jobs by when their lease ends
--   chatd:{queue}:workers          hash: worker -> 'at_ms state slots reserved json'
--   chatd:{queue}:dead             list of the last jobs whose attempts were spent, newest first:
--                                  'job_id lane asked_ms begun_ms attempts reason'
--   chatd:{queue}:job:ID           hash of one job; :results:ID its stream; :followers:ID set of who waits for it
--   chatd:{queue}:doctor:ID        set of a doctor's live jobs
--   chatd:{queue}:same:KEY         the job that answers this question
--   chatd:{queue}:sent:SENDER      'BATCH refused ids' of the last batch of events that a worker's process has sent
--
-- Turns are virtual time with cost 1: a doctor who begins to wait, or was just served and waits on, takes the next
-- number, and the lowest number is served. So between a doctor's question and its claim every other doctor is served at
-- most once, however many questions he has queued. Numbers stay far below 2^53: sorted sets hold them exactly.
-- ARGV[1]: limits and lanes (msgpack), ARGV[2]: now_ms.
local BASE = 'chatd:{queue}:'
local STATE = KEYS[1]
local DEADLINES, AGEING, RUNNING, LEASES = BASE .. 'deadlines', BASE .. 'ageing', BASE .. 'running', BASE .. 'leases'
local WORKERS, DEAD, BELL = BASE .. 'workers', BASE .. 'dead', BASE .. 'bell'
local LIMITS = cmsgpack.unpack(ARGV[1])
local NOW = tonumber(ARGV[2])
-- What is left of an overdue text is anybody's guess; a quarter of the usual time keeps the forecast from saying now.
local OVERDUE_PART = 4

local LANE = {}
for i, lane in ipairs(LIMITS.lanes) do
  LANE[lane.name] = lane
  lane.rank = i
  lane.key = BASE .. 'lane:' .. lane.name
  lane.turns = BASE .. 'turns:' .. lane.name
end
local TOP = LIMITS.lanes[1]

local function job_key(id) return BASE .. 'job:' .. id end
local function results_key(id) return BASE .. 'results:' .. id end
local function followers_key(id) return BASE .. 'followers:' .. id end
local function doctor_key(doctor) return BASE .. 'doctor:' .. doctor end

-- A job's fields but its payload; nil when it is gone.
local function load_job(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'doctor', 'lane', 'turn', 'seq', 'since', 'deadline',
    'attempt', 'fence', 'worker', 'stop', 'at', 'claimed', 'ended', 'spared')
  if not f[1] then
    return nil
  end
  return {
    id = id, state = f[1], doctor = f[2], lane = LANE[f[3]], turn = tonumber(f[4]), seq = f[5], since = tonumber(f[6]),
    deadline = tonumber(f[7]), attempt = tonumber(f[8]), fence = f[9], worker = f[10], stop = f[11] == '1',
    at = tonumber(f[12]), claimed = tonumber(f[13]), ended = f[14],
    spared = tonumber(f[15] or '0'),
  }
end

local function add_event(job, kind, ...)
  redis.call('XADD', results_key(job.id), '*', 'k', kind, 'a', job.attempt, ...)
end

local function keep_for(id, ms)
  redis.call('PEXPIRE', job_key(id), ms)
  redis.call('PEXPIRE', results_key(id), ms)
  redis.call('PEXPIRE', followers_key(id), ms)
end

local function ring(kind, ids)
  if #ids > 0 then
    redis.call('PUBLISH', BELL, kind .. ' ' .. table.concat(ids, ' '))
  end
end

local function next_number()
  return redis.call('HINCRBY', STATE, 'seq', 1)
end

local function member_of(job)
  return job.doctor .. '|' .. job.seq .. '|' .. job.id
end

-- The bounds of a doctor's jobs in a lane: '}' follows '|', which stands in no doctor's id.
local function bounds_of(doctor)
  return '[' .. doctor .. '|', '(' .. doctor .. '}'
end

-- Put a job into its lane, and its doctor in line for `turn` if he has no earlier one.
local function stand(job, turn)
  local lane = job.lane
  redis.call('ZADD', lane.key, 0, member_of(job))
  redis.call('ZADD', lane.turns, 'LT', turn, job.doctor)
  redis.call('ZADD', DEADLINES, job.deadline, job.id)
  if lane.promote_after_ms then
    redis.call('ZADD', AGEING, job.since + lane.promote_after_ms, job.id)
  end
  for _, key in ipairs({lane.key, lane.turns, DEADLINES, AGEING}) do
    redis.call('PEXPIRE', key, LIMITS.life_ms)
  end
end

-- Let a job join a lane behind its doctor's others.
local function join_lane(job, lane)
  local number = next_number()
  job.lane, job.since, job.state, job.seq = lane, NOW, 'waiting', string.format('%016.0f', number)
  redis.call('HSET', job_key(job.id), 'lane', lane.name, 'seq', job.seq, 'since', NOW, 'state', 'waiting')
  redis.call('PEXPIRE', STATE, LIMITS.state_ms)
  stand(job, number)
end

-- Take a waiting job out without a claim. The doctor's next one gets its turn: a question taken back costs nothing.
local function leave_lane(job)
  redis.call('ZREM', job.lane.key, member_of(job))
  redis.call('ZREM', DEADLINES, job.id)
  redis.call('ZREM', AGEING, job.id)
  if redis.call('ZLEXCOUNT', job.lane.key, bounds_of(job.doctor)) == 0 then
    redis.call('ZREM', job.lane.turns, job.doctor)
  end
end

-- Write the one `ended` event of a live job. The caller has taken a waiting one out of its lane.
local function end_job(job, reason, code, sealed)
  if sealed then
    add_event(job, 'ended', 's', sealed)
  else
    add_event(job, 'ended', 'r', reason, 'e', code)
  end
  job.state, job.ended = 'ended', reason
  redis.call('HSET', job_key(job.id), 'state', 'ended', 'ended', reason)
  redis.call('HDEL', job_key(job.id), 'payload')
  redis.call('ZREM', RUNNING, job.id)
  redis.call('ZREM', LEASES, job.id)
  redis.call('SREM', doctor_key(job.doctor), job.id)
  keep_for(job.id, LIMITS.keep_ms)
end

-- Take a running job back from its worker. It waits again at the turn it had, so before all who came later, its
-- doctor's others among them; or it ends, where nobody wants it, its time is over or its attempts are spent. The end
-- of the last is `sealed` if that is given. `is_spared`: this attempt counts as none, but keeps its number: text of two
-- attempts never goes by the same one. `why`: 'lost' or 'failed', for the list of the dead. Returns whether it waits.
local function give_back(job, why, sealed, is_spared)
  if job.stop then
    end_job(job, 'cancelled', '')
  elseif job.deadline <= NOW then
    end_job(job, 'deadline', '')
  elseif not is_spared and job.attempt - job.spared >= LIMITS.max_attempts then
    end_job(job, 'error', 'model_unavailable', sealed)
    redis.call('LPUSH', DEAD, table.concat({job.id, job.lane.name, job.at, job.claimed, job.attempt, why}, ' '))
    redis.call('LTRIM', DEAD, 0, LIMITS.max_dead - 1)
    redis.call('PEXPIRE', DEAD, LIMITS.state_ms)
  else
    redis.call('HSET', job_key(job.id), 'state', 'waiting', 'worker', '', 'spared', job.spared + (is_spared and 1 or 0))
    redis.call('ZREM', RUNNING, job.id)
    redis.call('ZREM', LEASES, job.id)
    stand(job, job.turn)
    add_event(job, 'restart')
    return true
  end
  return false
end

-- End the waiting jobs whose deadline has passed; returns their ids.
local function end_late()
  local ended = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', NOW)) do
    local job = load_job(id)
    if job and job.state == 'waiting' then
      leave_lane(job)
      end_job(job, 'deadline', '')
      ended[#ended + 1] = id
    else
      redis.call('ZREM', DEADLINES, id)
    end
  end
  return ended
end

-- How many of its lane's jobs are claimed before a doctor's next but `nth` one (order.py, `line`).
local function ahead_of(lane, doctor, nth)
  if nth == 0 then
    return redis.call('ZRANK', lane.turns, doctor) or redis.call('ZCARD', lane.turns)
  end
  local ahead, is_before = 0, true
  for _, other in ipairs(redis.call('ZRANGE', lane.turns, 0, -1)) do
    is_before = is_before and other ~= doctor
    ahead = ahead + math.min(redis.call('ZLEXCOUNT', lane.key, bounds_of(other)), is_before and nth + 1 or nth)
  end
  return ahead
end

-- The place of a job with `ahead` jobs before it in its own lane (order.py, `claim_order`).
local function place_of(lane, ahead)
  local others, before = 0, ahead
  for i, other in ipairs(LIMITS.lanes) do
    if i > 1 then
      others = others + redis.call('ZCARD', other.key)
      if i < lane.rank then
        before = before + redis.call('ZCARD', other.key)
      end
    end
  end
  local run, turns = tonumber(redis.call('HGET', STATE, 'run') or '0'), LIMITS.stat_run - 1
  if lane == TOP then
    return ahead + math.min(others, math.floor((ahead + run) / turns)) + 1
  end
  return before + 1 + math.min(redis.call('ZCARD', TOP.key), (before + 1) * turns - run)
end

local function service_ms()
  return tonumber(redis.call('HGET', STATE, 'service') or LIMITS.service_ms)
end

-- When the job at this place begins, and the live slots its lane may use (order.py, `slots_free_ms` and `eta_ms`); nil without slots.
local function forecast(lane, place)
  local slots, service, left = 0, service_ms(), {}
  local states = redis.call('HVALS', WORKERS)
  for _, state in ipairs(states) do
    local at, phase, all, reserved = string.match(state, '^(%d+) (%a+) (%d+) (%d+) ')
    if phase == 'ready' and NOW - tonumber(at) <= LIMITS.stale_ms then
      slots = slots + all - (lane == TOP and 0 or reserved)
    end
  end
  if slots < 1 then
    return nil, 0
  end
  local running = redis.call('ZRANGE', RUNNING, 0, -1, 'WITHSCORES')
  for i = 2, #running, 2 do
    local rest = tonumber(running[i]) + service - NOW
    left[#left + 1] = rest > 0 and math.min(rest, service) or math.floor(service / OVERDUE_PART)
  end
  table.sort(left)
  local nth, rounds = (place - 1) % slots, math.floor((place - 1) / slots)
  return (left[#left - slots + nth + 1] or 0) + rounds * service, slots
end
