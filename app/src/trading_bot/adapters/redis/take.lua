#!lua flags=allow-oom
-- Take one due order to work on. Whoever takes it holds it for a lease and gets a fence: a number that
-- rises with each taking, by which the ledger tells the present holder from a former one.
--
-- KEYS  1 order  hash   2 dispatch  zset   3 control  hash   4 audit  stream   5 outbox  stream
-- ARGV  1 account  2 client order id  3 lease in ms  4 holder  5 version  6 slot
--
-- Returns {what, fence, fingerprint, cancel wanted 0|1, ms since it was last sent, filled so far}, or false
-- where the order is not due (another instance has it, or it awaits another order's end) or done.
--   what  send: it was never sent; from now on it counts as sent
--         ask: it may have been sent; only the venue knows

local member = ARGV[1] .. ' ' .. ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = redis.call('ZSCORE', KEYS[2], member)
if not due or tonumber(due) > now then return false end
local order = redis.call('HMGET', KEYS[1], 'st', 'fp', 'cancel', 'sent', 'filled', 'decision', 'awaits')
local state = order[1]
if order[6] ~= '1' or state == 'filled' or state == 'cancelled' or state == 'rejected' or state == 'expired' then
  redis.call('ZREM', KEYS[2], member)
  return false
end
if order[7] then return false end
if state == 'accepted' and redis.call('HGET', KEYS[3], 'halted') == '1' then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + 1000), member)
  return false
end
redis.call('ZADD', KEYS[2], string.format('%.0f', now + tonumber(ARGV[3])), member)
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
if state == 'accepted' then
  redis.call('HSET', KEYS[1], 'st', 'dispatched', 'sent', string.format('%.0f', now), 'holder', ARGV[4])
  redis.call('XADD', KEYS[4], '*', 'e', 'order.dispatched', 'account', ARGV[1], 'order', ARGV[2],
    'version', ARGV[5], 'slot', ARGV[6])
  redis.call('XADD', KEYS[5], '*', 'e', 'order.dispatched', 'account', ARGV[1], 'order', ARGV[2],
    'at', string.format('%.0f', now), 'version', ARGV[5], 'slot', ARGV[6])
  return {'send', fence, order[2], order[3] or '0', 0, order[5] or '0'}
end
redis.call('HSET', KEYS[1], 'holder', ARGV[4])
return {'ask', fence, order[2], order[3] or '0', now - tonumber(order[4] or now), order[5] or '0'}
