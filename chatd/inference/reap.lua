-- Heal what went wrong without anybody there to see it: lost workers, passed deadlines, long waits.
-- ARGV: limits, now_ms, a worker known to be gone or '', 1 if it went as planned.
-- Returns: how many jobs were touched.
local gone, is_planned, lost, told, touched = ARGV[3], ARGV[4] == '1', {}, {}, 0
local function take_from_worker(job)
  if give_back(job, 'lost', nil, is_planned) then
    lost[#lost + 1] = job.id
  end
  told[#told + 1] = job.id
end
local leases = redis.call('ZRANGE', LEASES, 0, -1, 'WITHSCORES')
for i = 1, #leases, 2 do
  local id, until_ms = leases[i], tonumber(leases[i + 1])
  local job = load_job(id)
  if not job or job.state ~= 'running' then
    redis.call('ZREM', LEASES, id)
    redis.call('ZREM', RUNNING, id)
  elseif gone ~= '' then
    if job.worker == gone then
      take_from_worker(job)
    end
  elseif until_ms <= NOW or job.deadline + LIMITS.stale_ms <= NOW then
    -- The second: its worker has been told to stop for long and beats on.
    take_from_worker(job)
  end
end
if gone ~= '' then
  redis.call('HDEL', WORKERS, gone)
else
  for _, id in ipairs(end_late()) do
    told[#told + 1] = id
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', AGEING, '-inf', NOW)) do
    local job = load_job(id)
    if job and job.state == 'waiting' and job.lane.promote_to then
      leave_lane(job)
      join_lane(job, LANE[job.lane.promote_to])
      touched = touched + 1
    else
      redis.call('ZREM', AGEING, id)
    end
  end
  local states = redis.call('HGETALL', WORKERS)
  for i = 1, #states, 2 do
    if NOW - tonumber(string.match(states[i + 1], '^(%d+) ')) > LIMITS.stale_ms then
      redis.call('HDEL', WORKERS, states[i])
    end
  end
end
ring('lost', lost)
ring('work', lost)
ring('results', told)
return touched + #told
