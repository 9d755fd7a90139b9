-- Write what a worker has made, where it still holds the job.
-- A batch is written once, also when it comes again because its reply got lost; one that comes after a later one of
-- its sender is too late.
-- A job that failed on its engine is given back here too, behind the text that came before; one whose deadline has
-- passed is put back all the same, and whoever comes next ends it.
-- ARGV: limits, 0, worker, sender, number of the sender's batch, then for each event: job_id, fence, 'text', 'moving',
--       'failed' or 'ended', sealed content ('' of 'moving'), reason of the end, service time in ms to learn from or ''.
-- Returns: the ids that were refused.
local worker, told, refused, seen, again = ARGV[3], {}, {}, {}, {}
local sent_key, batch = BASE .. 'sent:' .. ARGV[4], tonumber(ARGV[5])
local sent = redis.call('GET', sent_key)
if sent then
  local last, answer = string.match(sent, '^(%d+) ?(.*)$')
  if tonumber(last) == batch then
    for id in string.gmatch(answer, '%S+') do
      refused[#refused + 1] = id
    end
    return refused
  elseif tonumber(last) > batch then
    for i = 6, #ARGV, 6 do
      refused[#refused + 1] = ARGV[i]
    end
    return refused
  end
end
for i = 6, #ARGV, 6 do
  local id, kind, service = ARGV[i], ARGV[i + 2], tonumber(ARGV[i + 5])
  -- Few fields: this runs for every row of every step.
  local held = redis.call('HMGET', job_key(id), 'state', 'worker', 'fence', 'attempt', 'doctor')
  if held[1] ~= 'running' or held[2] ~= worker or held[3] ~= ARGV[i + 1] then
    refused[#refused + 1] = id
  else
    local job = {id = id, attempt = held[4], doctor = held[5]}
    if kind == 'failed' then
      if give_back(load_job(id), 'failed', ARGV[i + 3]) then
        again[#again + 1] = id
      end
    elseif kind == 'ended' then
      end_job(job, ARGV[i + 4], '', ARGV[i + 3])
      if service then
        local known = service_ms()
        redis.call('HSET', STATE, 'service', math.floor(known + (service - known) * LIMITS.service_weight + 0.5))
        redis.call('PEXPIRE', STATE, LIMITS.state_ms)
      end
    elseif redis.call('XLEN', results_key(id)) >= LIMITS.max_results then
      end_job(job, 'length', '')
      refused[#refused + 1] = id
    elseif kind == 'moving' then
      add_event(job, 'moving')
    else
      add_event(job, 'text', 's', ARGV[i + 3])
    end
    if not seen[id] then
      seen[id] = true
      told[#told + 1] = id
    end
  end
end
redis.call('SET', sent_key, batch .. ' ' .. table.concat(refused, ' '), 'PX', LIMITS.keep_ms)
ring('work', again)
ring('results', told)
return refused
