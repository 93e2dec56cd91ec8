#!lua flags=allow-oom
-- Keep how far the ledger was verified, and what was found, if the lease is still the holder's.
--
-- KEYS  1 lease  string   2 verified  hash: account -> as the audit tells it   3 progress  string   4 audit  stream
-- ARGV  1 holder  2 progress, or nothing to leave it as it is  3 how many accounts; then account and text for each
--       then for each finding how many words, and field and value pairs of its line in the audit
-- Returns 1, or 0 where another holds the lease: then nothing is kept.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[3], ARGV[2]) end
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  at = at + 2
end
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  redis.call('XADD', KEYS[4], '*', unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
return 1
