-- A follower goes: because the answer is not wanted any more, or because it is safe elsewhere.
-- ARGV: limits, now_ms, job_id, follower, 1 to delete an ended job that nobody follows.
-- Returns: 1 if nobody follows any more, else 0.
local id = ARGV[3]
redis.call('SREM', followers_key(id), ARGV[4])
if redis.call('EXISTS', followers_key(id)) == 1 then
  return 0
end
local job = load_job(id)
if not job then
  return 1
end
if job.state == 'waiting' then
  leave_lane(job)
  end_job(job, 'cancelled', '')
  ring('results', {id})
elseif job.state == 'running' and not job.stop then
  redis.call('HSET', job_key(id), 'stop', 1)
  redis.call('SREM', doctor_key(job.doctor), id)
  ring('cancel', {id})
end
if ARGV[5] == '1' and job.state == 'ended' then
  -- Who asks the same within its minute still finds it.
  local same = BASE .. 'same:' .. redis.call('HGET', job_key(id), 'same')
  local rest = redis.call('GET', same) == id and redis.call('PTTL', same) or 0
  if rest > 0 and (job.ended == 'stop' or job.ended == 'length') then
    keep_for(id, rest)
  else
    redis.call('DEL', job_key(id), results_key(id), followers_key(id))
  end
end
return 1
