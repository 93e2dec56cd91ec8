#!lua flags=allow-oom
-- Give a lease back, if it is still the holder's.
--
-- KEYS  1 lease
-- ARGV  1 holder
-- Returns 1 if it was given back, else 0.

if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
