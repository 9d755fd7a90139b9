-- Open a session or find it again.
-- KEYS: session hash.  ARGV: new epoch, ttl_ms, now_ms.
-- Returns: epoch, last seq, 1 if it existed, sealed active patient or '', when a person last acted in it (ms).
local existed = redis.call('EXISTS', KEYS[1])
if existed == 0 then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', 0, 'acted', ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local found = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'patient', 'acted')
return {found[1], tonumber(found[2]), existed, found[3] or '', tonumber(found[4])}
