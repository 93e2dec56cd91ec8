#!lua flags=allow-oom
-- Change fleet-wide switches, with who and why in the audit, in one step.
--
-- KEYS  1 control  hash   2 audit  stream   3 outbox  stream   4 account  hash, or any key if none is meant
-- ARGV  1 event  2 who  3 why  4 version  5 slot  6 request id  7 account or ''
--       then field and value pairs of the control hash; an empty value removes the field
-- Returns the revision, which rises with each change.

local clock = redis.call('TIME')
local at = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local what = {}
for i = 8, #ARGV, 2 do
  what[#what + 1] = ARGV[i] .. '=' .. ARGV[i + 1]
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
if ARGV[7] ~= '' then
  -- A person lets an account trade again: its drawdown counts anew from what it is worth next.
  redis.call('HDEL', KEYS[4], 'latched', 'peak', 'day')
end
local detail = table.concat(what, ' ')
redis.call('XADD', KEYS[2], '*', 'e', ARGV[1], 'account', ARGV[7], 'by', ARGV[2], 'reason', ARGV[3],
  'detail', detail, 'version', ARGV[4], 'slot', ARGV[5], 'request', ARGV[6])
redis.call('XADD', KEYS[3], '*', 'e', ARGV[1], 'account', ARGV[7] ~= '' and ARGV[7] or 'all', 'by', ARGV[2],
  'reason', ARGV[3], 'at', at, 'version', ARGV[4], 'slot', ARGV[5])
return redis.call('HINCRBY', KEYS[1], 'revision', 1)
