-- Note last prices; an older one does not replace a newer one.
--
-- KEYS  1 marks  hash  symbol -> <price>|<ms>
-- ARGV  symbol, price, ms for each
-- Returns how many were taken.

local taken = 0
for i = 1, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  local stamp = known and string.match(known, '|(%d+)$')
  if not stamp or tonumber(stamp) < tonumber(ARGV[i + 2]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. '|' .. ARGV[i + 2])
    taken = taken + 1
  end
end
return taken
