#!lua flags=allow-oom
-- Take or renew the outbox's lease and read the oldest events under it. One instance publishes at a time,
-- so events leave in the order in which they were decided; when it dies the lease ends by itself.
--
-- KEYS  1 lease  string trading:lease:outbox   2 outbox  stream trading:outbox
-- ARGV  1 holder  2 lease in milliseconds  3 how many events
-- Returns the events, or false where another holds the lease.

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return false
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[3])
