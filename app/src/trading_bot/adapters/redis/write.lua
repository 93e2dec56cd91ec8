#!lua flags=allow-oom
-- One small write that has to be possible also where memory is used up and no new order is taken.
--
-- KEYS  1 what the command writes
-- ARGV  1 command  then its arguments after the key
-- Returns what the command returns.

return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
