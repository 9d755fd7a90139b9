-- Open a session or find it again, and tell all that a welcome needs.
-- KEYS: session hash, log stream, open responses, proposals hash, rate of the user, era of this Redis.
-- ARGV: tail of a new epoch, ttl_ms, now_ms, a new era, rate window_ms.
-- Returns: era, epoch, last seq, 1 if it existed, sealed active patient or '', ms since a person last acted in it,
--          first seq still in the log or 0, questions of the user within the window, the epoch before this history of
--          Redis or '', and the last seq of it that still holds.
-- Redis's own clock counts how long a session rests: one gateway's, set two hours ahead, ended every session it met.
local time = redis.call('TIME')
local clock = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[6], ARGV[4], 'NX')
local era = redis.call('GET', KEYS[6])
local existed = redis.call('EXISTS', KEYS[1])
if existed == 0 then
  -- What has outlived its session by a moment must not meet the new one's sequence numbers.
  redis.call('HSET', KEYS[1], 'epoch', era .. '-' .. ARGV[1] .. '.' .. history(), 'seq', 0, 'acted', clock)
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local epoch = epoch_of(KEYS[1])
local found = redis.call('HMGET', KEYS[1], 'former', 'seq', 'patient', 'acted', 'cut')
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
local first = 0
if oldest[1] then
  first = tonumber(string.match(oldest[1][1], '^(%d+)-'))
end
local used = redis.call('ZCOUNT', KEYS[5], '(' .. (tonumber(ARGV[3]) - tonumber(ARGV[5])), '+inf')
return {era, epoch, tonumber(found[2]), existed, found[3] or '', math.max(0, clock - tonumber(found[4])), first, used,
  found[1] or '', tonumber(found[5] or '0')}
