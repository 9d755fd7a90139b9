-- Register a worker and, if its engine moves, renew the leases of what it holds. A job that was taken from it stays
-- taken: the holder and the fence are looked at here, in the same step.
-- ARGV: limits, now_ms, worker, its state as kept in the hash of workers, 1 if the engine moves, then pairs of job_id
--       and fence.
-- Returns: {ids to stop}, {ids not held any more}.
local worker, stop, lost = ARGV[3], {}, {}
redis.call('HSET', WORKERS, worker, ARGV[4])
redis.call('PEXPIRE', WORKERS, LIMITS.state_ms)
for i = 6, #ARGV, 2 do
  local id = ARGV[i]
  local job = load_job(id)
  if not job or job.state ~= 'running' or job.worker ~= worker or job.fence ~= ARGV[i + 1] then
    lost[#lost + 1] = id
  else
    if ARGV[5] == '1' then
      redis.call('ZADD', LEASES, NOW + LIMITS.lease_ms, id)
    end
    if job.stop or job.deadline <= NOW then
      stop[#stop + 1] = id
    end
  end
end
return {stop, lost}
