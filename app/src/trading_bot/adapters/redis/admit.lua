-- Decide one order, once and for ever.
--
-- Amounts are integers scaled by 10^8. Doubles hold integers exactly up to 2^53, so every amount that
-- comes in is at most 9e15 and every result is checked against that before it is written.
--
-- KEYS
--   1 order     hash   trading:order:<account>:<client order id>
--   2 account   hash   trading:account:<account>
--   3 orders    zset   trading:orders:<account>, client order ids by time
--   4 control   hash   trading:control: halted, degraded
--   5 marks     hash   trading:marks: symbol -> last price
--   6 outbox    stream trading:outbox: what the bus has yet to be told
--   7 audit     stream trading:audit: every decision
--   8 dispatch  zset   trading:dispatch: "<account> <client order id>" by the time it is due
--
-- ARGV
--   1 account  2 client order id  3 fingerprint  4 symbol  5 buy|sell  6 type
--   7 quantity  8 price or ''  9 stop price or ''  10 reduce only 0|1
--   11 version  12 slot  13 request id  14 max position size
--
-- Fields of an account
--   q:<symbol>              position, signed
--   bq: bn: sq: sn:<symbol> in flight: quantity and notional of buys and of sells
--   accepted, open          orders accepted ever, orders that are not yet done
--
-- Returns {code, again, at, version, slot, rule, limit, value}
--   1 accepted · 2 refused by a check · 3 conflict: the id names another order
--   4 throttled · 5 halted. Codes 4 and 5 leave no trace of the order: it may be sent again.
--   again is 1 where the decision had been made before.

local ACCEPTED, REFUSED, CONFLICT, HALTED = 1, 2, 3, 5
local MAX = 9e15

local known = redis.call('HMGET', KEYS[1], 'fp', 'decision', 'at', 'version', 'slot', 'rule', 'limit', 'value')
if known[1] then
  if known[1] ~= ARGV[3] then
    return {CONFLICT, 1, known[3], known[4], known[5], '', '', ''}
  end
  return {tonumber(known[2]), 1, known[3], known[4], known[5], known[6] or '', known[7] or '', known[8] or ''}
end

local clock = redis.call('TIME')
local at = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local control = redis.call('HMGET', KEYS[4], 'halted', 'degraded')
if control[1] == '1' then
  return {HALTED, 0, at, ARGV[11], ARGV[12], 'halted', '', ''}
end

local symbol, side, quantity = ARGV[4], ARGV[5], tonumber(ARGV[7])
local reduce_only = ARGV[10] == '1'
local book = redis.call('HMGET', KEYS[2], 'q:' .. symbol, 'bq:' .. symbol, 'bn:' .. symbol,
  'sq:' .. symbol, 'sn:' .. symbol)
local position = tonumber(book[1] or 0)

local function int(value)
  return string.format('%.0f', value)
end

-- floor(a * b / 10^8) for non-negative integers, exact where the result is at most MAX; nil beyond that.
-- Split at 10^8 so that no partial product passes 2^53.
local function times(a, b)
  if a * b / 1e8 > MAX then return nil end
  local a1, b1 = math.floor(a / 1e8), math.floor(b / 1e8)
  local a0, b0 = a - a1 * 1e8, b - b1 * 1e8
  local high = math.floor(a0 / 1e4)
  local low = a0 - high * 1e4
  local cross = high * b0
  local x = math.floor(cross / 1e4)
  local rest = (cross - x * 1e4) * 1e4 + low * b0
  return a1 * b + a0 * b1 + x + math.floor(rest / 1e8)
end

local function refuse(rule, limit, value)
  redis.call('HSET', KEYS[1], 'fp', ARGV[3], 'decision', REFUSED, 'st', 'rejected', 'at', at,
    'version', ARGV[11], 'slot', ARGV[12], 'rule', rule, 'limit', limit, 'value', value)
  redis.call('XADD', KEYS[7], '*', 'e', 'order.refused', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
    'rule', rule, 'limit', limit, 'value', value, 'version', ARGV[11], 'slot', ARGV[12], 'request', ARGV[13])
  redis.call('XADD', KEYS[6], '*', 'e', 'order.refused', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
    'at', at, 'rule', rule, 'limit', limit, 'value', value, 'version', ARGV[11], 'slot', ARGV[12])
  return {REFUSED, 0, at, ARGV[11], ARGV[12], rule, limit, value}
end

-- Checks, in the order in which an answer names them.

local bought, sold = tonumber(book[2] or 0), tonumber(book[4] or 0)
if reduce_only or control[2] == '1' then
  local closable
  if side == 'sell' then closable = position - sold else closable = -position - bought end
  if closable < 0 then closable = 0 end
  if quantity > closable then
    return refuse(reduce_only and 'reduce_only' or 'degraded', int(closable), int(quantity))
  end
end

local mark = redis.call('HGET', KEYS[5], symbol)
mark = mark and tonumber(string.match(mark, '^%d+'))
local price = tonumber(ARGV[8]) or tonumber(ARGV[9]) or mark
if not price or (position ~= 0 and not mark) then
  return refuse('mark_missing', 'a price for ' .. symbol, 'none')
end

local notional = times(quantity, price)
local held = position ~= 0 and times(math.abs(position), mark) or 0
local limit = tonumber(ARGV[14])
if not notional or not held then
  return refuse('max_position_size', int(limit), 'beyond what can be held')
end
local signed = position < 0 and -held or held
local exposure
if side == 'buy' then
  exposure = signed + tonumber(book[3] or 0) + notional
else
  exposure = -signed + tonumber(book[5] or 0) + notional
end
if exposure > limit then
  return refuse('max_position_size', int(limit), int(exposure))
end

-- Accepted: reserve, remember, tell, all or nothing.

local flight = side == 'buy' and 'b' or 's'
redis.call('HINCRBY', KEYS[2], flight .. 'q:' .. symbol, int(quantity))
redis.call('HINCRBY', KEYS[2], flight .. 'n:' .. symbol, int(notional))
redis.call('HINCRBY', KEYS[2], 'accepted', 1)
redis.call('HINCRBY', KEYS[2], 'open', 1)
redis.call('HSET', KEYS[1], 'fp', ARGV[3], 'decision', ACCEPTED, 'st', 'accepted', 'at', at,
  'version', ARGV[11], 'slot', ARGV[12], 'left', int(quantity), 'reserved', int(notional))
redis.call('ZADD', KEYS[3], at, ARGV[2])
redis.call('ZADD', KEYS[8], at, ARGV[1] .. ' ' .. ARGV[2])
redis.call('XADD', KEYS[7], '*', 'e', 'order.accepted', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
  'version', ARGV[11], 'slot', ARGV[12], 'request', ARGV[13])
redis.call('XADD', KEYS[6], '*', 'e', 'order.accepted', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
  'at', at, 'version', ARGV[11], 'slot', ARGV[12])
return {ACCEPTED, 0, at, ARGV[11], ARGV[12], '', '', ''}
