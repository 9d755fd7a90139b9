-- Take entries of a register that are newer than what is here, and ring if there was one.
-- KEYS: the entries, the mark. ARGV: a new mark, the channel, then field and entry in turn.
-- An entry begins with its time in milliseconds and a colon. Sent twice, the second time changes nothing.
local changed = 0
for at = 3, #ARGV, 2 do
  local field, entry = ARGV[at], ARGV[at + 1]
  local known = redis.call('HGET', KEYS[1], field)
  local known_ms = known and tonumber(string.match(known, '^%d+')) or -1
  if tonumber(string.match(entry, '^%d+')) > known_ms then
    redis.call('HSET', KEYS[1], field, entry)
    changed = changed + 1
  end
end
if changed > 0 or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SET', KEYS[2], ARGV[1])
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return changed
