-- Put a job into its lane, once; or tell why not.
-- ARGV: limits, now_ms, job_id, doctor, lane, follower, key of the same question or '', sealed job.
-- Returns: {'queued' or 'known' or 'joined', job_id, place or 0, eta_ms or -1, 0} | {'full' or 'deadline', job_id, 0,
--          eta_ms or -1, retry_after_ms}.
local id, doctor, lane, follower, same = ARGV[3], ARGV[4], LANE[ARGV[5]], ARGV[6], ARGV[7]
local function follow(job, outcome)
  redis.call('SADD', followers_key(job.id), follower)
  redis.call('PEXPIRE', followers_key(job.id), redis.call('PTTL', job_key(job.id)))
  if job.state ~= 'waiting' then
    return {outcome, job.id, 0, -1, 0}
  end
  local first = bounds_of(job.doctor)
  local nth = redis.call('ZLEXCOUNT', job.lane.key, first, '(' .. member_of(job))
  local place = place_of(job.lane, ahead_of(job.lane, job.doctor, nth))
  return {outcome, job.id, place, forecast(job.lane, place) or -1, 0}
end
ring('results', end_late())
local known = load_job(id)
if known then
  return follow(known, 'known')
end
local same_key = BASE .. 'same:' .. same
if same ~= '' then
  local running = redis.call('GET', same_key)
  local job = running and load_job(running)
  -- A waiting job in a lower lane would make this asker wait longer than a job of its own.
  if job and NOW - job.at < LIMITS.same_ms and not job.stop
    and (job.state == 'running' or job.state == 'waiting' and job.lane.rank <= lane.rank
      or job.ended == 'stop' or job.ended == 'length') then
    return follow(job, 'joined')
  end
end
local service = service_ms()
local next_end, slots = forecast(lane, 1)
if redis.call('SCARD', doctor_key(doctor)) >= LIMITS.max_per_doctor then
  return {'full', id, 0, next_end or -1, service}
end
if redis.call('ZCARD', DEADLINES) >= LIMITS.max_waiting then
  return {'full', id, 0, next_end or -1, math.floor(service / math.max(1, slots))}
end
local place = place_of(lane, ahead_of(lane, doctor, redis.call('ZLEXCOUNT', lane.key, bounds_of(doctor))))
local eta = forecast(lane, place)
if eta and eta + service > lane.deadline_ms then
  return {'deadline', id, 0, eta, eta + service - lane.deadline_ms}
end
local job = {id = id, doctor = doctor, deadline = NOW + lane.deadline_ms}
redis.call('HSET', job_key(id), 'doctor', doctor, 'at', NOW, 'deadline', job.deadline, 'attempt', 0, 'fence', 0,
  'same', same, 'payload', ARGV[8])
join_lane(job, lane)
redis.call('SADD', followers_key(id), follower)
redis.call('SADD', doctor_key(doctor), id)
redis.call('PEXPIRE', doctor_key(doctor), LIMITS.life_ms)
keep_for(id, LIMITS.life_ms)
if same ~= '' then
  redis.call('SET', same_key, id, 'PX', LIMITS.same_ms)
end
ring('work', {id})
return {'queued', id, place, eta or -1, 0}
