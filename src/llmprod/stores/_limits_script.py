"""The rate limiter as one Lua script: what :class:`llmprod.RateLimiter` does, on the server's clock, in one step.

Each limit is a generic cell rate: its level and the time at which it was right, from which the present one follows
(GCRA keeps the two in one number, which a rate that changes, as after a 429, does not allow).

KEYS: the state (a hash), the leases of calls under way (a sorted set by expiry), the processes seen (by time). They
share a hash tag, so that a cluster keeps them on one node. ARGV: the operation, the number of limits, then of each
limit its name, rate, burst and kind (``0``: a pause does not empty it, ``2``: a drain does too), then what the
operation needs:

``reserve``   id, seconds of lease, process, concurrent (0: any number), a cost for each limit
``end``       id, what was used more than was reserved, for each limit
``throttled`` seconds
``drain``     nothing: a server that knows nothing begins with empty buckets
``calibrate`` for each limit what was believed, corrections until then, what the provider says (``-1``: nothing)
"""

SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local op, n = ARGV[1], tonumber(ARGV[2])
local rest = 3 + 4 * n

local state, stored = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do state[stored[i]] = tonumber(stored[i + 1]) end
local paused = state['paused'] or 0
local slowed, slowed_at = state['slowed'] or 1, state['slowed_at'] or 0
local pace = 1
if slowed < 1 then
  pace = math.max(0.1, math.min(1, slowed + (now - slowed_at) * 0.05 / 60))
end

local limits = {}
for i = 1, n do
  local at = 3 + 4 * (i - 1)
  local limit = {name = ARGV[at], rate = tonumber(ARGV[at + 1]), burst = tonumber(ARGV[at + 2]), kind = ARGV[at + 3]}
  limit.level = math.min(limit.burst, state[limit.name .. ':level'] or limit.burst)
  limit.seen = state[limit.name .. ':seen'] or now
  limit.corrected = state[limit.name .. ':corrected'] or 0
  if now > limit.seen then
    limit.level = math.min(limit.burst, limit.level + (now - limit.seen) * limit.rate * pace)
    limit.seen = now
  end
  limits[i] = limit
end

local function number(value) return string.format('%.9f', value) end

local function save()
  local fields, keep = {'paused', number(paused), 'slowed', number(slowed), 'slowed_at', number(slowed_at)}, 60
  for _, limit in ipairs(limits) do
    for _, field in ipairs({'level', 'seen', 'corrected'}) do
      fields[#fields + 1] = limit.name .. ':' .. field
      fields[#fields + 1] = number(limit[field])
    end
    keep = math.max(keep, (limit.burst - limit.level) / (limit.rate * pace) + math.max(0, limit.seen - now) + 60)
  end
  if slowed < 1 then keep = math.max(keep, 1200) end
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('EXPIRE', KEYS[1], math.ceil(math.max(keep, paused - now + 60)))
end

if op == 'reserve' then
  local id, lease, process, concurrent = ARGV[rest], tonumber(ARGV[rest + 1]), ARGV[rest + 2], tonumber(ARGV[rest + 3])
  redis.call('ZADD', KEYS[3], number(now), process)
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', number(now - 60))
  redis.call('EXPIRE', KEYS[3], 120)
  local seen = redis.call('ZCARD', KEYS[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', number(now))
  -- Asked twice, since the first answer got lost: taken once.
  if not redis.call('ZSCORE', KEYS[2], id) then
    if now < paused then return {0, seen, 'paused', number(paused - now)} end
    if concurrent > 0 and redis.call('ZCARD', KEYS[2]) >= concurrent then return {0, seen, 'concurrent', '-1'} end
    local longest, short = 0, ''
    for i, limit in ipairs(limits) do
      local cost = tonumber(ARGV[rest + 3 + i])
      local lacking = math.min(cost, limit.burst) - limit.level
      if cost > 0 and lacking > 1e-6 * math.max(1, cost) and lacking / (limit.rate * pace) > longest then
        longest, short = lacking / (limit.rate * pace), limit.name
      end
    end
    if longest > 0 then return {0, seen, short, number(longest)} end
    for i, limit in ipairs(limits) do limit.level = limit.level - tonumber(ARGV[rest + 3 + i]) end
    redis.call('ZADD', KEYS[2], number(now + lease), id)
    redis.call('EXPIRE', KEYS[2], math.ceil(lease) + 60)
    save()
  end
  local answer = {1, seen}
  for _, limit in ipairs(limits) do
    answer[#answer + 1] = number(limit.level)
    answer[#answer + 1] = number(limit.corrected)
  end
  return answer
elseif op == 'end' then
  -- A lease that is gone was ended before, or never given.
  if redis.call('ZREM', KEYS[2], ARGV[rest]) == 1 then
    for i, limit in ipairs(limits) do
      limit.level = math.min(limit.burst, limit.level - tonumber(ARGV[rest + i]))
    end
    save()
  end
elseif op == 'throttled' then
  if now >= paused then
    slowed = math.max(0.1, pace * ((now - slowed_at < 10) and 0.9 or 0.95))
    slowed_at = now
  end
  paused = math.max(paused, now + tonumber(ARGV[rest]))
  for _, limit in ipairs(limits) do
    if limit.kind ~= '0' then
      limit.level = math.min(limit.level, 0)
      limit.seen = paused
    end
  end
  save()
elseif op == 'drain' then
  if #stored == 0 then
    for _, limit in ipairs(limits) do
      if limit.kind == '2' then limit.level = math.min(limit.level, 0) end
    end
    save()
  end
elseif op == 'calibrate' then
  for i, limit in ipairs(limits) do
    local at = rest + 3 * (i - 1)
    local believed, corrected, told = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local excess = believed - (limit.corrected - corrected) - told
    -- Fewer corrections than the call has seen: this is another memory than the one that gave it leave.
    if told >= 0 and excess > 0 and limit.corrected >= corrected then
      limit.level = limit.level - excess
      limit.corrected = limit.corrected + excess
    end
  end
  save()
end
return {1}
"""
