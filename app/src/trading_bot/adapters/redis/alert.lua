#!lua flags=allow-oom
-- Publish an alert and keep it, unless the same was published a while ago by whichever instance.
--
-- KEYS  1 quiet  string trading:alert:<rule>:<account>:<occurrence>   2 history  stream <channel>:history
-- ARGV  1 channel  2 the alert as JSON  3 how long the same is not told again, in ms  4 how many are kept
-- Returns 1 if it was published, else 0.

if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[3]) then return 0 end
redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'json', ARGV[2])
return 1
