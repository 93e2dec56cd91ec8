-- Decide one order, once and for ever.
--
-- Amounts are integers scaled by 10^8. Doubles hold integers exactly up to 2^53, so every amount that
-- comes in is at most 9e15 and every product is checked against that before it is used.
--
-- KEYS
--   1 order       hash   trading:order:<account>:<client order id>
--   2 account     hash   trading:account:<account>
--   3 orders      zset   trading:orders:<account>, client order ids by time
--   4 control     hash   trading:control: halted, degraded
--   5 marks       hash   trading:marks: symbol -> <price>|<ms>
--   6 outbox      stream trading:outbox: what the bus has yet to be told
--   7 audit       stream trading:audit: every decision
--   8 dispatch    zset   trading:dispatch: "<account> <client order id>" of every order that is not done, by
--                        the time it is due
--   9 instruments hash   trading:instruments: symbol -> <tick>|<lot>|<minimum>|<maximum>
--  10 intent      string trading:intent:<account>:<what the order is meant to do>, lives for the window
--
-- ARGV
--   1 account  2 client order id  3 fingerprint  4 symbol  5 buy|sell  6 type
--   7 quantity  8 price or ''  9 stop price or ''  10 reduce only 0|1
--   11 version  12 slot  13 request id
--   limits (see domain/limits.py): 14 position size  15 order notional  16 open orders  17 orders a second
--   18 price collar  19 leverage  20 margin level  21 margin rate  22 drawdown  23 duplicate window
--   24 initial equity  25 age of a mark
--   26 what for: 0 decide · 1 decide only, leave no trace · 2 decide, and tell what it was decided from; after
--      0 and 2 the name under which trading:limits (hash) is to hold the limits, for the audit ·
--      {..} what an order was decided from, as JSON (domain/shadow.py): decide from that, leave no trace
--
-- Fields of an account
--   cash                    paid in, plus realised, less fees
--   q: c: r: f:<symbol>     position and its cost (signed), realised, fees
--   bq: bn: sq: sn:<symbol> in flight: quantity and notional of buys and of sells
--   accepted, open          orders accepted ever, orders that are not done
--   day, peak, latched      the day, its peak equity, reduce-only until a person resumes
--   second, requests        the throttle
--
-- Returns {code, again, at, version, slot, rule, limit, value}
--   1 accepted · 2 refused by a check · 3 conflict: the id names another order
--   4 throttled · 5 halted. Codes 4 and 5 leave no trace of the order: it may be sent again.
--   again is 1 where the decision had been made before. A ratio's value is <numerator>/<denominator>.
--   With ARGV 26 = 2 and where it was decided now, or is a conflict, there is a ninth element: {at, order,
--   account, control, symbols, marks, instrument, intent} as they were before. With ARGV 26 = {..} the ninth is
--   1 where more was needed than is told there, and was read from the ledger as it is by now.

local ACCEPTED, REFUSED, CONFLICT, THROTTLED, HALTED = 1, 2, 3, 4, 5
local MAX = 9e15

local purpose = string.byte(ARGV[26])
local told = purpose == 123 and cjson.decode(ARGV[26])
local tell, dry = purpose == 50, purpose ~= 48 and purpose ~= 50

local known
if told then
  known = told.order
else
  known = redis.call('HMGET', KEYS[1], 'fp', 'decision', 'at', 'version', 'slot', 'rule', 'limit', 'value')
end
if known[1] then
  if known[1] ~= ARGV[3] then
    return {CONFLICT, 1, known[3], known[4], known[5], '', '', '', tell and {known[3], known} or nil}
  end
  return {tonumber(known[2]), 1, known[3], known[4], known[5], known[6] or '', known[7] or '', known[8] or ''}
end

local format = string.format
local function int(value)
  return format('%.0f', value)
end

-- floor(a * b / 10^8) for non-negative integers, and whether that is exact; nil where it is beyond MAX.
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
  local whole = math.floor(rest / 1e8)
  return a1 * b + a0 * b1 + x + whole, rest == whole * 1e8
end

local clock = redis.call('TIME')
local now = told and tonumber(told.at) or clock[1] * 1000 + math.floor(clock[2] / 1000)
local at = int(now)
local ninth

local function answer(code, rule, limit, value)
  return {code, 0, at, ARGV[11], ARGV[12], rule, limit, value, ninth}
end

local control = told and told.control or redis.call('HMGET', KEYS[4], 'halted', 'degraded')
if control[1] == '1' then
  return answer(HALTED, 'halted', '', '')
end

local account = {}
local flat = told and told.account or redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do account[flat[i]] = flat[i + 1] end

local instrument
if told then
  instrument = told.instrument
else
  instrument = redis.call('HGET', KEYS[9], ARGV[4])
end
local function other_intent()
  if told then return told.intent end
  return redis.call('GET', KEYS[10])
end

if tell then
  local symbols, seen = {ARGV[4]}, {[ARGV[4]] = true}
  for name in pairs(account) do
    local held = string.match(name, ':(.+)$')
    if held and not seen[held] then
      seen[held] = true
      symbols[#symbols + 1] = held
    end
  end
  ninth = {at, known, flat, control, symbols, redis.call('HMGET', KEYS[5], unpack(symbols)), instrument,
    other_intent()}
end

local function field(name)
  return tonumber(account[name] or 0)
end

local rate = tonumber(ARGV[17])
if rate > 0 and not dry then
  local requests = 1
  if account.second == clock[1] then requests = field('requests') + 1 end
  if requests > rate then
    return answer(THROTTLED, 'max_orders_per_second', ARGV[17], int(requests))
  end
  redis.call('HSET', KEYS[2], 'second', clock[1], 'requests', requests)
end

local function refuse(rule, limit, value)
  if dry then return answer(REFUSED, rule, limit, value) end
  redis.call('HSET', KEYS[1], 'fp', ARGV[3], 'decision', REFUSED, 'st', 'rejected', 'at', at,
    'version', ARGV[11], 'slot', ARGV[12], 'rule', rule, 'limit', limit, 'value', value)
  redis.call('XADD', KEYS[7], '*', 'e', 'order.refused', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
    'rule', rule, 'limit', limit, 'value', value, 'version', ARGV[11], 'slot', ARGV[12], 'request', ARGV[13])
  redis.call('XADD', KEYS[6], '*', 'e', 'order.refused', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
    'at', at, 'rule', rule, 'limit', limit, 'value', value, 'version', ARGV[11], 'slot', ARGV[12])
  return answer(REFUSED, rule, limit, value)
end

-- Checks, in the order in which an answer names them.

local symbol, side, quantity = ARGV[4], ARGV[5], tonumber(ARGV[7])
local price, stop = tonumber(ARGV[8]), tonumber(ARGV[9])

-- What can still be closed. An order within that only reduces: limits on exposure do not hold it up.
local position = field('q:' .. symbol)
local closable
if side == 'sell' then
  closable = position - field('sq:' .. symbol)
else
  closable = -position - field('bq:' .. symbol)
end
if closable < 0 then closable = 0 end
local reducing = quantity <= closable
if not reducing then
  if control[2] == '1' then return refuse('degraded', int(closable), int(quantity)) end
  if account.latched == '1' then return refuse('drawdown_latched', int(closable), int(quantity)) end
  if ARGV[10] == '1' then return refuse('reduce_only', int(closable), int(quantity)) end
end

if not instrument then return refuse('instrument_unknown', 'a known instrument', symbol) end
local tick, lot, minimum, maximum = string.match(instrument, '^(%d+)|(%d+)|(%d+)|(%d+)')
if price and math.fmod(price, tick) ~= 0 then return refuse('tick_size', tick, int(price)) end
if stop and math.fmod(stop, tick) ~= 0 then return refuse('tick_size', tick, int(stop)) end
if math.fmod(quantity, lot) ~= 0 then return refuse('lot_size', lot, int(quantity)) end
if quantity < tonumber(minimum) then return refuse('min_quantity', minimum, int(quantity)) end
if quantity > tonumber(maximum) then return refuse('max_quantity', maximum, int(quantity)) end

-- A mark that is missing, too old or of a time to come is none, and whatever needs it is refused.
local marks = {}
local age = tonumber(ARGV[25])
local function mark_of(name)
  if marks[name] == nil then
    local text
    if told and told.marks[name] ~= nil then
      text = told.marks[name]
    else
      if told then ninth = 1 end
      text = redis.call('HGET', KEYS[5], name)
    end
    local value, stamp
    if text then value, stamp = string.match(text, '^(%d+)|?(%d*)') end
    if value and (age == 0 or stamp == '' or math.abs(now - tonumber(stamp)) <= age) then
      marks[name] = tonumber(value)
    else
      marks[name] = false
    end
  end
  return marks[name]
end

local collar = tonumber(ARGV[18])
local reference = price or stop or mark_of(symbol)
if not reference or (collar > 0 and not mark_of(symbol)) then
  return refuse('mark_missing', 'a mark for ' .. symbol, 'none')
end
if collar > 0 and price then
  local mark = mark_of(symbol)
  local width = times(mark, collar)
  if width and math.abs(price - mark) > width then
    return refuse('price_collar', int(mark - width) .. '..' .. int(mark + width), int(price))
  end
end

local notional = times(quantity, reference)
if not notional then return refuse('max_order_notional', ARGV[15], 'beyond what can be held') end
if notional > tonumber(ARGV[15]) then return refuse('max_order_notional', ARGV[15], int(notional)) end
if field('open') >= tonumber(ARGV[16]) then
  return refuse('max_open_orders', ARGV[16], int(field('open') + 1))
end

local cash = account.cash
if not cash then
  if tonumber(ARGV[24]) == 0 then return refuse('equity_missing', 'a funded account', 'none') end
  cash = ARGV[24]
end

local today = math.floor(now / 86400000)
local equity, peak
if not reducing then
  -- Equity and gross exposure, were everything in flight to fill on the worse side of each instrument.
  local symbols = {[symbol] = true}
  for name in pairs(account) do
    -- Every instrument that is held or in flight has a field bq: or sq: or q:.
    if string.byte(name, 2) == 58 then
      symbols[string.sub(name, 3)] = true
    elseif string.byte(name, 3) == 58 then
      symbols[string.sub(name, 4)] = true
    end
  end
  equity = tonumber(cash)
  local gross, size = 0, 0
  for name in pairs(symbols) do
    local held, value = field('q:' .. name), 0
    if held ~= 0 then
      local mark = mark_of(name)
      if not mark then return refuse('mark_missing', 'a mark for ' .. name, 'none') end
      value = times(math.abs(held), mark)
      if not value then return refuse('max_position_size', ARGV[14], 'beyond what can be held') end
      if held < 0 then value = -value end
      equity = equity + value - field('c:' .. name)
    end
    local up, down = value + field('bn:' .. name), value - field('sn:' .. name)
    if name == symbol then
      if side == 'buy' then
        up = up + notional
        size = up
      else
        down = down - notional
        size = -down
      end
    end
    gross = gross + math.max(math.abs(up), math.abs(down))
  end

  if size > tonumber(ARGV[14]) then return refuse('max_position_size', ARGV[14], int(size)) end

  local room = 0
  if equity > 0 then room = times(equity, tonumber(ARGV[19])) or MAX end
  if gross > room or equity <= 0 then
    return refuse('max_leverage', ARGV[19], int(gross) .. '/' .. int(equity))
  end

  local used, exact = times(gross, tonumber(ARGV[21]))
  if used and not exact then used = used + 1 end
  local need
  if used then
    need, exact = times(used, tonumber(ARGV[20]))
    if need and not exact then need = need + 1 end
  end
  if not need or equity < need then
    return refuse('min_margin_level', ARGV[20], int(equity) .. '/' .. int(used or MAX))
  end

  peak = field('peak')
  if account.day ~= int(today) or equity > peak then peak = equity end
  local floor
  floor, exact = times(peak, 1e8 - tonumber(ARGV[22]))
  if not exact then floor = floor + 1 end
  if equity < floor then
    if not dry then
      redis.call('HSET', KEYS[2], 'latched', '1')
      redis.call('XADD', KEYS[7], '*', 'e', 'account.latched', 'account', ARGV[1], 'peak', int(peak),
        'equity', int(equity), 'version', ARGV[11], 'slot', ARGV[12])
      redis.call('XADD', KEYS[6], '*', 'e', 'account.latched', 'account', ARGV[1], 'at', at, 'peak', int(peak),
        'equity', int(equity), 'version', ARGV[11], 'slot', ARGV[12])
    end
    return refuse('max_drawdown', ARGV[22], int(peak - equity) .. '/' .. int(peak))
  end
end

local window = tonumber(ARGV[23])
if window > 0 then
  local other = other_intent()
  if other then return refuse('duplicate_intent', 'one such order in ' .. ARGV[23] .. ' ms', other) end
end

if dry then return answer(ACCEPTED, '', '', '') end

-- Accepted: reserve, remember, tell, all or nothing.

if window > 0 then redis.call('SET', KEYS[10], ARGV[2], 'PX', window) end
local quantities, notionals = 'bq:' .. symbol, 'bn:' .. symbol
if side == 'sell' then quantities, notionals = 'sq:' .. symbol, 'sn:' .. symbol end
local fields = {quantities, int(field(quantities) + quantity), notionals, int(field(notionals) + notional),
  'accepted', int(field('accepted') + 1), 'open', int(field('open') + 1), 'cash', cash}
if equity then
  fields[#fields + 1] = 'day'
  fields[#fields + 1] = int(today)
  fields[#fields + 1] = 'peak'
  fields[#fields + 1] = int(peak)
end
redis.call('HSET', KEYS[2], unpack(fields))
redis.call('HSET', KEYS[1], 'fp', ARGV[3], 'decision', ACCEPTED, 'st', 'accepted', 'at', at, 'version', ARGV[11],
  'slot', ARGV[12], 'left', int(quantity), 'reserved', int(notional), 'reference', int(reference))
redis.call('ZADD', KEYS[3], at, ARGV[2])
redis.call('ZADD', KEYS[8], at, ARGV[1] .. ' ' .. ARGV[2])
-- What it takes to check this decision once more, whatever has changed by then.
local limits, used = string.sub(ARGV[26], 2), {}
if redis.call('HEXISTS', 'trading:limits', limits) == 0 then
  redis.call('HSET', 'trading:limits', limits, table.concat(ARGV, '|', 14, 25))
end
for name, mark in pairs(marks) do
  if mark then used[#used + 1] = name .. '=' .. int(mark) end
end
redis.call('XADD', KEYS[7], '*', 'e', 'order.accepted', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
  'version', ARGV[11], 'slot', ARGV[12], 'request', ARGV[13], 'limits', limits, 'cash', cash,
  'marks', table.concat(used, ','))
redis.call('XADD', KEYS[6], '*', 'e', 'order.accepted', 'account', ARGV[1], 'order', ARGV[2], 'fp', ARGV[3],
  'at', at, 'version', ARGV[11], 'slot', ARGV[12])
return answer(ACCEPTED, '', '', '')
