-- ARGV: seq and id of the active one, its lease, t0 + T_c, TTL of active, the id that passed the gate, T_c.
local now, until_ms = now_ms(), tonumber(ARGV[4])
local newer, ended = newest_seq(read(KEYS[2]))
if now >= until_ms or newer > tonumber(ARGV[1]) or ended >= tonumber(ARGV[1]) then
    let_go(ARGV[6])
    return 0
end
local kept = math.min(redis.call('PTTL', KEYS[2]), tonumber(ARGV[7]))
redis.call('SET', KEYS[2], ARGV[3], 'PX', string.format('%.0f', math.max(until_ms - now, kept)))
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[5])
return 1
