-- ARGV: my id, T_c, TTL of the reservation.
-- Returns t0, and after a space what refuses, RESERVED or VERIFY.
local now = now_ms()
local t0 = string.format('%.0f', now)
local lease, active = read(KEYS[2]), read(KEYS[1])
if lease and active then
    local id, until_ms = string.match(lease, '^C:%d+:([%x-]+):(%d+):')
    local left = (tonumber(until_ms) or 0) - now
    if id == active and left > 0 and left <= tonumber(ARGV[2]) then return t0 .. ' ' .. lease end
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[3]) then return t0 .. ' RESERVED' end
return t0 .. ' VERIFY'
