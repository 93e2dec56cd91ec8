#!lua flags=allow-oom
-- Take or renew a lease that one instance at a time holds.
--
-- KEYS  1 lease  string
-- ARGV  1 holder  2 lease in ms
-- Returns 1 if it is the holder's now, else 0.

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
