-- Before every script. KEYS = {active, lease}. A key of another type than ours is thrown away.
local function read(key)
    local value = redis.pcall('GET', key)
    if type(value) == 'table' then
        redis.call('DEL', key)
        return false
    end
    return value
end
local function now_ms()
    local t = redis.call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function newest_seq(lease) -- of the confirmed, and of the ended
    if not lease then return -1, -1 end
    local newer, ended = string.match(lease, '^C:(%d+):'), string.match(lease, '^T:(%d+)$')
    return tonumber(newer) or -1, tonumber(ended) or -1
end
local function let_go(id)
    if read(KEYS[1]) == id then redis.call('DEL', KEYS[1]) end
end
