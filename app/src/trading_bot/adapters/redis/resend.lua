#!lua flags=allow-oom
-- Note that an order is about to be sent once more, after the venue said that it does not have it and can
-- no longer get it from an earlier sending.
--
-- KEYS  1 order  hash
-- ARGV  1 fence
-- Returns 1, or 0 where another instance has taken the order over or it is done.

local order = redis.call('HMGET', KEYS[1], 'fence', 'st')
if order[1] ~= ARGV[1] or (order[2] ~= 'dispatched' and order[2] ~= 'unknown') then return 0 end
local clock = redis.call('TIME')
redis.call('HSET', KEYS[1], 'st', 'dispatched', 'sent',
  string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)))
return 1
