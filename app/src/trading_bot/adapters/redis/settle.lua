#!lua flags=allow-oom
-- Apply what the venue says of one order: fills, each once, then its state.
--
-- KEYS
--   1 order  hash    2 account  hash    3 outbox  stream    4 audit  stream    5 dispatch  zset
--   6 fills  stream  trading:fills: every fill ever, the source of all positions
--   7 trades set     trading:trades:<venue>: ids of trades that were applied
--
-- ARGV
--   1 account  2 client order id  3 fence, or '' for a fact that needs none
--   4 state as the venue has it: '' unknown open cancelled rejected expired filled
--   5 quantity that the venue has filled in all, or ''   6 ms until the order is looked at again
--   7 venue  8 reason  9 version  10 slot
--   11 how many fills; then 5 for each: trade id, quantity, price, fee, time in ms
--
-- An order keeps the content of each trade as field t:<trade>, and of each that was doubled as d:<trade>.
--
-- Returns {code, state, how many fills were new, what awaits the end of this order if that is now,
--          how many executions were found doubled for the first time}
--   1 applied · 2 no such order · 3 fenced: another instance has taken the order over
--   4 behind: the venue has filled more than was told here, so the order is not done yet
--   doubled is a fill beyond the order's quantity, and a known trade that now reads otherwise or was another
--   order's: a venue, or somebody who sends orders past the ledger, has executed something twice

local APPLIED, NONE, FENCED, BEHIND = 1, 2, 3, 4
local MAX = 9e15

-- transitions: the same as TRANSITIONS in domain/lifecycle.py
local legal = {
  accepted = {dispatched = 1, cancelled = 1, expired = 1},
  dispatched = {unknown = 1, open = 1, partially_filled = 1, filled = 1, cancelled = 1, rejected = 1, expired = 1},
  unknown = {dispatched = 1, open = 1, partially_filled = 1, filled = 1, cancelled = 1, rejected = 1, expired = 1},
  open = {partially_filled = 1, filled = 1, cancelled = 1, expired = 1},
  partially_filled = {filled = 1, cancelled = 1, expired = 1},
  filled = {},
  cancelled = {},
  rejected = {},
  expired = {},
}
-- end of transitions

local order = redis.call('HMGET', KEYS[1], 'fp', 'st', 'left', 'reserved', 'reference', 'fence', 'decision', 'filled',
  'next')
if order[7] ~= '1' then return {NONE, '', 0, '', 0} end
if ARGV[3] ~= '' and ARGV[3] ~= order[6] then return {FENCED, order[2], 0, '', 0} end

local function int(value)
  return string.format('%.0f', value)
end

local function times(a, b)
  if a * b / 1e8 > MAX then error('an amount is beyond what can be held') end
  local a1, b1 = math.floor(a / 1e8), math.floor(b / 1e8)
  local a0, b0 = a - a1 * 1e8, b - b1 * 1e8
  local high = math.floor(a0 / 1e4)
  local low = a0 - high * 1e4
  local cross = high * b0
  local x = math.floor(cross / 1e4)
  return a1 * b + a0 * b1 + x + math.floor(((cross - x * 1e4) * 1e4 + low * b0) / 1e8)
end

-- floor(a * b / c) for b <= c, exact: binary multiplication in which neither sum passes 2^53.
local function portion(a, b, c)
  local quotient, rest = 0, 0
  local bits = {}
  while a > 0 do
    local half = math.floor(a / 2)
    bits[#bits + 1] = a - half * 2
    a = half
  end
  for i = #bits, 1, -1 do
    quotient = quotient * 2
    if rest >= c - rest then
      rest = rest - (c - rest)
      quotient = quotient + 1
    else
      rest = rest * 2
    end
    if bits[i] == 1 then
      if rest >= c - b then
        rest = rest - (c - b)
        quotient = quotient + 1
      else
        rest = rest + b
      end
    end
  end
  return quotient
end

local words = {}
for word in string.gmatch(order[1] .. '|', '([^|]*)|') do words[#words + 1] = word end
local symbol, side = words[1], words[2]
local sign = side == 'buy' and 1 or -1
local state = order[2]
local left, reserved = tonumber(order[3]), tonumber(order[4])
local filled = tonumber(order[8] or 0)
local final = next(legal[state]) == nil
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function tell(event, ...)
  redis.call('XADD', KEYS[4], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[2], 'version', ARGV[9],
    'slot', ARGV[10], ...)
  redis.call('XADD', KEYS[3], '*', 'e', event, 'account', ARGV[1], 'order', ARGV[2], 'at', int(now),
    'version', ARGV[9], 'slot', ARGV[10], ...)
end

local function reserve(quantity, notional)
  local flight = side == 'buy' and 'b' or 's'
  redis.call('HINCRBY', KEYS[2], flight .. 'q:' .. symbol, int(quantity - left))
  redis.call('HINCRBY', KEYS[2], flight .. 'n:' .. symbol, int(notional - reserved))
  left, reserved = quantity, notional
  redis.call('HSET', KEYS[1], 'left', int(left), 'reserved', int(reserved))
end

-- Work everything out before the first write, so that an error leaves nothing half done.
local fills, values, seen, doubled = {}, {}, {}, {}
for i = 0, tonumber(ARGV[11]) - 1 do
  local base = 11 + i * 5
  local trade = ARGV[base + 1]
  local content = ARGV[base + 2] .. '|' .. ARGV[base + 3]
  if seen[trade] then
    if seen[trade] ~= content then doubled[#doubled + 1] = {trade, content} end
  elseif redis.call('SISMEMBER', KEYS[7], trade) == 1 then
    if redis.call('HGET', KEYS[1], 't:' .. trade) ~= content then doubled[#doubled + 1] = {trade, content} end
    seen[trade] = content
  else
    seen[trade] = content
    local fill = {trade, tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3]), tonumber(ARGV[base + 4]), ARGV[base + 5]}
    fills[#fills + 1] = fill
    values[#fills] = times(fill[2], fill[3])
  end
end

if #fills > 0 then
  local book = redis.call('HMGET', KEYS[2], 'q:' .. symbol, 'c:' .. symbol)
  local position, cost = tonumber(book[1] or 0), tonumber(book[2] or 0)
  local realised, fees = 0, 0
  for i, fill in ipairs(fills) do
    local quantity, price, value = fill[2], fill[3], values[i]
    fees = fees + fill[4]
    filled = filled + quantity
    if filled > tonumber(words[4]) then doubled[#doubled + 1] = {fill[1], int(quantity) .. '|' .. int(price)} end
    if position * sign >= 0 then
      position = position + sign * quantity
      cost = cost + sign * value
    else
      local held = math.abs(position)
      local closed = math.min(quantity, held)
      local out = math.abs(cost)
      if closed < held then out = portion(math.abs(cost), closed, held) end
      local closed_value = value
      if closed < quantity then closed_value = times(closed, price) end
      realised = realised - sign * (closed_value - out)
      if quantity > held then
        position = sign * (quantity - held)
        cost = sign * (value - closed_value)
      else
        position = position + sign * closed
        cost = cost + sign * out
      end
    end
  end
  if math.abs(position) > MAX or math.abs(cost) > MAX then error('a position is beyond what can be held') end
  for _, fill in ipairs(fills) do
    redis.call('SADD', KEYS[7], fill[1])
    redis.call('HSET', KEYS[1], 't:' .. fill[1], int(fill[2]) .. '|' .. int(fill[3]))
    redis.call('XADD', KEYS[6], '*', 'account', ARGV[1], 'order', ARGV[2], 'venue', ARGV[7], 'trade', fill[1],
      'symbol', symbol, 'side', side, 'quantity', int(fill[2]), 'price', int(fill[3]), 'fee', int(fill[4]),
      'at', fill[5])
    tell('order.fill', 'venue', ARGV[7], 'trade', fill[1], 'symbol', symbol, 'side', side,
      'quantity', int(fill[2]), 'price', int(fill[3]), 'fee', int(fill[4]))
  end
  redis.call('HSET', KEYS[2], 'q:' .. symbol, int(position), 'c:' .. symbol, int(cost))
  redis.call('HINCRBY', KEYS[2], 'r:' .. symbol, int(realised))
  redis.call('HINCRBY', KEYS[2], 'f:' .. symbol, int(fees))
  redis.call('HINCRBY', KEYS[2], 'cash', int(realised - fees))
  redis.call('HSET', KEYS[1], 'filled', int(filled))
  if not final then
    local total = tonumber(words[4]) - filled
    if total < 0 then total = 0 end
    reserve(total, total == 0 and 0 or times(total, tonumber(order[5] or words[5])))
  end
end

-- Told once each, though the venue reports it again with every look at the order.
local found = 0
for _, double in ipairs(doubled) do
  if redis.call('HSETNX', KEYS[1], 'd:' .. double[1], double[2]) == 1 then
    found = found + 1
    tell('order.doubled', 'venue', ARGV[7], 'trade', double[1], 'content', double[2])
  end
end

local code = APPLIED
local wanted = ARGV[4]
if not final then
  if left == 0 then
    wanted = 'filled'
  elseif wanted == 'cancelled' or wanted == 'rejected' or wanted == 'expired' then
    if ARGV[5] ~= '' and tonumber(ARGV[5]) ~= filled then
      code, wanted = BEHIND, ''
    end
  elseif wanted == 'filled' then
    code, wanted = BEHIND, ''
  end
  if filled > 0 and (wanted == '' or wanted == 'open' or wanted == 'unknown') then wanted = 'partially_filled' end
  if wanted ~= '' and legal[state][wanted] then
    state = wanted
    redis.call('HSET', KEYS[1], 'st', state)
    final = next(legal[state]) == nil
    if final then
      reserve(0, 0)
      redis.call('HINCRBY', KEYS[2], 'open', -1)
      if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], 'reason', ARGV[8]) end
    end
    tell('order.' .. state, 'filled', int(filled), 'reason', ARGV[8])
  end
end
local member = ARGV[1] .. ' ' .. ARGV[2]
if final then
  redis.call('ZREM', KEYS[5], member)
elseif ARGV[6] ~= '' then
  redis.call('ZADD', KEYS[5], int(now + tonumber(ARGV[6])), member)
end
return {code, state, #fills, final and order[9] or '', found}
