-- Read an account, some of its orders and what the audit has told since a line, all at one instant.
--
-- KEYS  1 audit  stream   2 account  hash   3 dispatch  zset   4 fills  stream   5.. orders  hashes
-- ARGV  1 id of the last line that is known   2 how many lines at most   3 account   4.. client order ids
--
-- Returns {lines, fields of the account, how many fills there are, for each order {st, left, reserved, reference,
-- filled, 1 if it is in dispatch}}. As many lines as were asked for: there are more, and nothing else is told.

local lines = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
if #lines == tonumber(ARGV[2]) then return {lines, {}, 0, {}} end
local orders = {}
for i = 5, #KEYS do
  local order = redis.call('HMGET', KEYS[i], 'st', 'left', 'reserved', 'reference', 'filled')
  order[6] = redis.call('ZSCORE', KEYS[3], ARGV[3] .. ' ' .. ARGV[i - 1]) and '1' or '0'
  orders[#orders + 1] = order
end
return {lines, redis.call('HGETALL', KEYS[2]), redis.call('XLEN', KEYS[4]), orders}
