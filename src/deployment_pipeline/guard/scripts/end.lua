-- ARGV: seq and id of the ended one, T_c, TTL of active, the id that took its slot or ''.
-- A late end may throw away the lease of the one that followed, which costs a Postgres statement; what that lease
-- said of those before it is kept.
local newer, ended = newest_seq(read(KEYS[2]))
local over = math.max(tonumber(ARGV[1]), newer - 1, ended)
redis.call('SET', KEYS[2], string.format('T:%.0f', over), 'PX', ARGV[3])
if read(KEYS[1]) == ARGV[2] then
    if ARGV[5] == '' then
        redis.call('DEL', KEYS[1])
    else
        redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[4])
    end
end
return 1
