#!lua flags=allow-oom
-- Note last prices; an older one does not replace a newer one.
--
-- A price of more than a second to come, from a clock that is ahead, counts as one of now: else it would stay until that
-- time has come, and be fresh for as long.
--
-- KEYS  1 marks  hash  symbol -> <price>|<ms>
-- ARGV  symbol, price, ms for each
-- Returns how many were taken.

local AHEAD = 1000
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local taken = 0
for i = 1, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  local stamp = known and tonumber(string.match(known, '|(%d+)$'))
  local at = tonumber(ARGV[i + 2])
  if at > now + AHEAD then at = now end
  -- It is known of a time to come once this server's own clock was set back.
  if not stamp or stamp < at or stamp > now + AHEAD then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. '|' .. string.format('%.0f', at))
    taken = taken + 1
  end
end
return taken
