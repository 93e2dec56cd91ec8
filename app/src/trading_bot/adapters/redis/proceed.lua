#!lua flags=allow-oom
-- Let an order go that awaits the end of the one it replaces, for as much as that one has left unfilled.
--
-- KEYS  1 order  hash   2 awaited order  hash   3 account  hash   4 outbox  stream   5 audit  stream
--       6 dispatch  zset   7 replacing  zset
-- ARGV  1 account  2 client order id  3 awaited client order id  4 version  5 slot
--
-- Returns 1 it may be sent · 2 nothing is left: it is cancelled · 3 the awaited order is not done · 4 it awaits
--   that order no more

local SENT, ENDED, WAITS, GONE = 1, 2, 3, 4

local member = ARGV[1] .. ' ' .. ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local order = redis.call('HMGET', KEYS[1], 'st', 'awaits', 'fp', 'total', 'left', 'reserved', 'reference')
if order[1] ~= 'accepted' or order[2] ~= ARGV[3] then
  redis.call('ZREM', KEYS[7], member .. ' ' .. ARGV[3])
  return GONE
end
local awaited = redis.call('HMGET', KEYS[2], 'st', 'filled', 'before')
local state = awaited[1]
if state ~= 'filled' and state ~= 'cancelled' and state ~= 'rejected' and state ~= 'expired' then
  redis.call('ZADD', KEYS[7], string.format('%.0f', now + 1000), member .. ' ' .. ARGV[3])
  return WAITS
end

local function int(value)
  return string.format('%.0f', value)
end

local function times(a, b)
  local a1, b1 = math.floor(a / 1e8), math.floor(b / 1e8)
  local a0, b0 = a - a1 * 1e8, b - b1 * 1e8
  local high = math.floor(a0 / 1e4)
  local cross = high * b0
  local x = math.floor(cross / 1e4)
  return a1 * b + a0 * b1 + x + math.floor(((cross - x * 1e4) * 1e4 + (a0 - high * 1e4) * b0) / 1e8)
end

local before = tonumber(awaited[2] or 0) + tonumber(awaited[3] or 0)
local quantity = tonumber(order[4]) - before
local reserved = 0
if quantity > 0 then reserved = times(quantity, tonumber(order[7])) else quantity = 0 end
local symbol, side = string.match(order[3], '^([^|]*)|([^|]*)')
local flight = side == 'buy' and 'b' or 's'
redis.call('HINCRBY', KEYS[3], flight .. 'q:' .. symbol, int(quantity - tonumber(order[5])))
redis.call('HINCRBY', KEYS[3], flight .. 'n:' .. symbol, int(reserved - tonumber(order[6])))
redis.call('HSET', KEYS[1], 'left', int(quantity), 'reserved', int(reserved), 'before', int(before))
redis.call('HDEL', KEYS[1], 'awaits')
redis.call('ZREM', KEYS[7], member .. ' ' .. ARGV[3])

local function tell(event, ...)
  redis.call('XADD', KEYS[5], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[2], 'version', ARGV[4],
    'slot', ARGV[5], ...)
  redis.call('XADD', KEYS[4], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[2], 'at', int(now),
    'version', ARGV[4], 'slot', ARGV[5], ...)
end

if quantity == 0 then
  redis.call('HINCRBY', KEYS[3], 'open', -1)
  redis.call('HSET', KEYS[1], 'st', 'cancelled', 'reason', 'the order that it replaces was filled')
  redis.call('ZREM', KEYS[6], member)
  tell('order.cancelled', 'reason', 'the order that it replaces was filled')
  return ENDED
end
-- The fingerprint is what is sent to the venue, by whichever version takes it.
local fp = string.gsub(order[3], '^([^|]*|[^|]*|[^|]*|)%d+', '%1' .. int(quantity))
redis.call('HSET', KEYS[1], 'fp', fp)
redis.call('ZADD', KEYS[6], int(now), member)
tell('order.released', 'fp', fp)
return SENT
