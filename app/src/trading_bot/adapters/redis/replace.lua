-- Replace one order by another, in one step. The new one is decided as if the old one had ended; if it is accepted
-- the old one's cancel is wanted, and if it is refused the old one stays as it was.
--
-- An old order that the venue may have is asked back first: the new one awaits its end (release.lua lets it go) and
-- is not to be sent before. Until then both count as in flight, so other orders are held to more than can happen.
--
-- KEYS  1 to 10 as admit.lua has them, for the new order
--   11 old order  hash   12 live  hash: what the old order awaits, or the old order itself   13 replacing  zset
--      trading:replacing: "<account> <new> <live>" of every order that awaits another's end, by when to look
-- ARGV  1 to 26 as admit.lua has them, for the new order; its quantity (7, in 3, and in KEYS 10) is what is wanted
--      in all, with what the orders before it have filled
--   27 old client order id  28 live client order id  29 what was asked: the same again gets the same answer
--
-- Fields that it adds to an order (an older version ignores them)
--   asked, replaces, total   of the new one: what was asked, which order, the quantity wanted in all
--   before                   what the orders before it filled
--   awaits                   whose end it awaits; such an order is in trading:dispatch at +inf
--   next                     of the old one: what replaces it
--
-- Returns as admit.lua does, with the old order's state at the end; and the codes
--   6 no such order · 7 the old order is done · 8 it awaits another order than was thought: look again
--   9 its cancel is wanted already, value names what replaces it

local function admit(KEYS, ARGV)
-- include admit.lua
end

local ACCEPTED, REFUSED, CONFLICT, NONE, DONE, MOVED, PENDING = 1, 2, 3, 6, 7, 8, 9
local MAX = 9e15

local known = redis.call('HMGET', KEYS[1], 'fp', 'asked', 'decision', 'at', 'version', 'slot', 'rule', 'limit', 'value')
if known[1] then
  if known[2] ~= ARGV[29] then
    return {CONFLICT, 1, known[4], known[5], known[6], '', '', '', ''}
  end
  return {tonumber(known[3]), 1, known[4], known[5], known[6], known[7] or '', known[8] or '', known[9] or '', ''}
end

local clock = redis.call('TIME')
local at = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local function answer(code, rule, limit, value, state)
  return {code, 0, at, ARGV[11], ARGV[12], rule, limit, value, state}
end

local function read(key)
  local names = {'st', 'left', 'reserved', 'reference', 'filled', 'before', 'awaits', 'cancel', 'next'}
  local values, order = redis.call('HMGET', key, unpack(names)), {}
  for i, name in ipairs(names) do order[name] = values[i] end
  for _, name in ipairs({'left', 'reserved', 'reference', 'filled', 'before'}) do
    order[name] = tonumber(order[name] or 0)
  end
  return order
end

local old = read(KEYS[11])
if not old.st then return answer(NONE, '', '', '', '') end
if old.st == 'filled' or old.st == 'cancelled' or old.st == 'rejected' or old.st == 'expired' then
  return answer(DONE, '', '', '', old.st)
end
if old.cancel == '1' then return answer(PENDING, '', '', old.next or '', old.st) end
if (old.awaits or ARGV[27]) ~= ARGV[28] then return answer(MOVED, '', '', '', old.st) end
local held = old.awaits ~= false
local live = held and read(KEYS[12]) or old
local sent = held or old.st ~= 'accepted'

local function int(value)
  return string.format('%.0f', value)
end

local function times(a, b)
  if a * b / 1e8 > MAX then error('an amount is beyond what can be held') end
  local a1, b1 = math.floor(a / 1e8), math.floor(b / 1e8)
  local a0, b0 = a - a1 * 1e8, b - b1 * 1e8
  local high = math.floor(a0 / 1e4)
  local cross = high * b0
  local x = math.floor(cross / 1e4)
  return a1 * b + a0 * b1 + x + math.floor(((cross - x * 1e4) * 1e4 + (a0 - high * 1e4) * b0) / 1e8)
end

local total, before = tonumber(ARGV[7]), live.before + live.filled
local quantity = total - before
if quantity <= 0 then return answer(REFUSED, 'already_filled', int(total), int(before), old.st) end

-- What the check is to find: nothing of the old order but what is worse than the new one's own notional, should the
-- old one fill at its price before the venue takes it back.
local extra = 0
if sent and live.left > 0 then
  local shared = math.min(live.left, quantity)
  local price = tonumber(ARGV[8]) or tonumber(ARGV[9]) or live.reference
  if price < live.reference then extra = times(shared, live.reference) - times(shared, price) end
end
local flight = ARGV[5] == 'buy' and 'b' or 's'
local quantities, notionals = flight .. 'q:' .. ARGV[4], flight .. 'n:' .. ARGV[4]
local function reserve(sign, order, more)
  redis.call('HINCRBY', KEYS[2], quantities, int(sign * order.left))
  redis.call('HINCRBY', KEYS[2], notionals, int(sign * (order.reserved - more)))
  redis.call('HINCRBY', KEYS[2], 'open', sign)
end
local ended = live.st == 'filled' or live.st == 'cancelled' or live.st == 'rejected' or live.st == 'expired'

local arguments, keys = {}, {}
for i = 1, 26 do arguments[i] = ARGV[i] end
for i = 1, 10 do keys[i] = KEYS[i] end
arguments[3] = string.gsub(ARGV[3], '^([^|]*|[^|]*|[^|]*|)%d+', '%1' .. int(quantity))
arguments[7] = int(quantity)
keys[10] = string.gsub(KEYS[10], '^([^|]*|[^|]*|)%d+', '%1' .. int(quantity))

reserve(-1, old, held and 0 or extra)
if held and not ended then reserve(-1, live, extra) end
local fine, reply = pcall(admit, keys, arguments)
local accepted = fine and reply[1] == ACCEPTED and ARGV[26] ~= '1'
if held and not ended then reserve(1, live, extra) end
if not accepted or (sent and not held) then
  reserve(1, old, held and 0 or extra)
end
if not fine then error(reply) end
reply[9] = old.st
if ARGV[26] == '1' then return reply end
if not accepted then
  if reply[1] == REFUSED then
    redis.call('HSET', KEYS[1], 'asked', ARGV[29], 'replaces', ARGV[27], 'total', ARGV[7])
  end
  return reply
end

local function tell(event)
  redis.call('XADD', KEYS[7], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[27], 'next', ARGV[2],
    'version', ARGV[11], 'slot', ARGV[12], 'request', ARGV[13])
  redis.call('XADD', KEYS[6], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[27], 'at', at, 'next', ARGV[2],
    'version', ARGV[11], 'slot', ARGV[12])
end

redis.call('HSET', KEYS[1], 'asked', ARGV[29], 'replaces', ARGV[27], 'total', ARGV[7], 'before', int(before))
redis.call('HSET', KEYS[11], 'next', ARGV[2])
if held or not sent then
  redis.call('HSET', KEYS[11], 'st', 'cancelled', 'left', 0, 'reserved', 0)
  redis.call('ZREM', KEYS[8], ARGV[1] .. ' ' .. ARGV[27])
  tell('order.cancelled')
  reply[9] = 'cancelled'
else
  redis.call('HSET', KEYS[11], 'cancel', '1')
  redis.call('ZADD', KEYS[8], at, ARGV[1] .. ' ' .. ARGV[27])
  tell('order.cancel_wanted')
end
if sent then
  redis.call('HSET', KEYS[1], 'awaits', ARGV[28])
  redis.call('HSET', KEYS[12], 'next', ARGV[2])
  redis.call('ZADD', KEYS[8], '+inf', ARGV[1] .. ' ' .. ARGV[2])
  redis.call('ZADD', KEYS[13], at, ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[28])
  if held then redis.call('ZREM', KEYS[13], ARGV[1] .. ' ' .. ARGV[27] .. ' ' .. ARGV[28]) end
end
return reply
