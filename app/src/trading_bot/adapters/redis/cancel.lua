#!lua flags=allow-oom
-- Cancel one order. Never refused by a risk check; only the throttle counts it.
--
-- KEYS  1 order  hash   2 account  hash   3 outbox  stream   4 audit  stream   5 dispatch  zset
-- ARGV  1 account  2 client order id  3 version  4 slot  5 request id  6 requests a second, 0 for no throttle
--
-- Returns {code, state}
--   1 cancelled: it had not been sent · 2 wanted: the venue is asked to · 3 done before · 4 no such order
--   5 throttled

local CANCELLED, WANTED, DONE, NONE, THROTTLED = 1, 2, 3, 4, 5

local order = redis.call('HMGET', KEYS[1], 'decision', 'st', 'left', 'reserved', 'fp', 'cancel')
if not order[1] then return {NONE, ''} end
local state = order[2]
if state == 'filled' or state == 'cancelled' or state == 'rejected' or state == 'expired' then
  return {DONE, state}
end
local clock = redis.call('TIME')
local rate = tonumber(ARGV[6])
if rate > 0 then
  local throttle = redis.call('HMGET', KEYS[2], 'second', 'requests')
  local requests = 1
  if throttle[1] == clock[1] then requests = tonumber(throttle[2]) + 1 end
  if requests > rate then return {THROTTLED, state} end
  redis.call('HSET', KEYS[2], 'second', clock[1], 'requests', requests)
end
local at = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local member = ARGV[1] .. ' ' .. ARGV[2]

local function tell(event)
  redis.call('XADD', KEYS[4], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[2], 'version', ARGV[3],
    'slot', ARGV[4], 'request', ARGV[5])
  redis.call('XADD', KEYS[3], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[2], 'at', at,
    'version', ARGV[3], 'slot', ARGV[4])
end

if state == 'accepted' then
  local symbol, side = string.match(order[5], '^([^|]*)|([^|]*)')
  local flight = side == 'buy' and 'b' or 's'
  redis.call('HINCRBY', KEYS[2], flight .. 'q:' .. symbol, '-' .. order[3])
  redis.call('HINCRBY', KEYS[2], flight .. 'n:' .. symbol, '-' .. order[4])
  redis.call('HINCRBY', KEYS[2], 'open', -1)
  redis.call('HSET', KEYS[1], 'st', 'cancelled', 'left', 0, 'reserved', 0)
  redis.call('ZREM', KEYS[5], member)
  tell('order.cancelled')
  return {CANCELLED, 'cancelled'}
end
if order[6] ~= '1' then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  redis.call('ZADD', KEYS[5], at, member)
  tell('order.cancel_wanted')
end
return {WANTED, state}
