"""The accounts of budgets as one Lua script, by the rules of :class:`llmprod.mechanisms.budget_ledger.BudgetLedger`.

It runs on the server's clock. The caller works out the windows, since Lua knows no time zones, from what it takes for
that clock; a window that the clock is not in is answered with the right time.

KEYS: what is held (a hash by reservation: amount, lapsed, accounts), the leases (a sorted set by expiry), then the
accounts (hashes of ``s``, spent, and ``r``, reserved). All share a hash tag, so that a cluster keeps them on one node.
ARGV: the operation, ``1`` if a lapsed reservation counts as spent, then what the operation needs:

``reserve``  id, amount, seconds of lease, for each account its begin, end and limit
``end``      id, actual, kind (``0``: as usual; ``1``: nothing was reserved, so the accounts that are given get it all;
             ``2``: a reservation that may not have arrived yet, and must not), for each account its end
``levels``   for each account its begin and end

Nano-dollars up to 2^53 are exact in Lua's doubles. What is counted twice by a client that asks again, since the first
answer got lost, is counted once.
"""

SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local told = string.format('%.6f', now)
local op, lapsed_is_spent = ARGV[1], ARGV[2] == '1'
local held, leases = KEYS[1], KEYS[2]
local count = #KEYS - 2
local FORGET = 604800

local function whole(value) return string.format('%.0f', value) end

local function add(account, spent, reserved)
  if redis.call('EXISTS', account) == 1 then
    if spent ~= 0 then redis.call('HINCRBY', account, 's', whole(spent)) end
    if reserved ~= 0 then redis.call('HINCRBY', account, 'r', whole(reserved)) end
  end
end

local function entry(id)
  local stored = redis.call('HGET', held, id)
  if not stored then return nil end
  local words = {}
  for word in string.gmatch(stored, '%S+') do words[#words + 1] = word end
  return {amount = tonumber(words[1]), lapsed = words[2] == '1', accounts = {unpack(words, 3)}}
end

local function keep(id, amount, lapsed, accounts, until_)
  redis.call('HSET', held, id, table.concat({whole(amount), lapsed, unpack(accounts)}, ' '))
  redis.call('ZADD', leases, string.format('%.6f', until_), id)
  redis.call('EXPIRE', held, 4 * FORGET)
  redis.call('EXPIRE', leases, 4 * FORGET)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', told, 'LIMIT', 0, 100)) do
  local old = entry(id)
  if not old or old.lapsed then
    redis.call('HDEL', held, id)
    redis.call('ZREM', leases, id)
  else
    for _, account in ipairs(old.accounts) do
      add(account, lapsed_is_spent and old.amount or 0, -old.amount)
    end
    keep(id, old.amount, '1', old.accounts, now + FORGET)
  end
end

local function level(account)
  local stored = redis.call('HMGET', account, 's', 'r')
  return tonumber(stored[1] or 0), tonumber(stored[2] or 0)
end

local function elsewhen(first, step)
  for i = 1, count do
    local at = first + step * (i - 1)
    if now < tonumber(ARGV[at]) or now >= tonumber(ARGV[at + 1]) then return true end
  end
  return false
end

if op == 'reserve' then
  local id, amount, lease = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  local answer, known = {1, told}, entry(id)
  if known and #known.accounts == 0 then return {3, told} end
  if not known then
    if elsewhen(6, 3) then return {2, told} end
    local place, latest, short = 0, 0, nil
    for i = 1, count do
      local spent, reserved = level(KEYS[2 + i])
      local ends, limit = tonumber(ARGV[7 + 3 * (i - 1)]), tonumber(ARGV[8 + 3 * (i - 1)])
      if amount > 0 and spent + reserved + amount > limit and ends > latest then
        place, latest, short = i, ends, {0, told, i - 1, spent, reserved}
      end
    end
    if short then return short end
    local accounts = {}
    for i = 1, count do
      local account = KEYS[2 + i]
      accounts[i] = account
      redis.call('HINCRBY', account, 'r', whole(amount))
      redis.call('EXPIREAT', account, math.ceil(tonumber(ARGV[7 + 3 * (i - 1)]) + lease) + 3600)
    end
    keep(id, amount, '0', accounts, now + lease)
  end
  for i = 1, count do
    local spent, reserved = level(KEYS[2 + i])
    answer[#answer + 1] = spent
    answer[#answer + 1] = reserved
  end
  return answer
elseif op == 'end' then
  local id, actual, kind = ARGV[3], tonumber(ARGV[4]), ARGV[5]
  local old = entry(id)
  if old and #old.accounts > 0 then
    redis.call('HDEL', held, id)
    redis.call('ZREM', leases, id)
    for _, account in ipairs(old.accounts) do
      if old.lapsed then
        add(account, actual - (lapsed_is_spent and old.amount or 0), 0)
      else
        add(account, actual, -old.amount)
      end
    end
  elseif not old and kind ~= '0' then
    keep(id, 0, '1', {}, now + FORGET)
    for i = 1, count do
      local account = KEYS[2 + i]
      redis.call('HINCRBY', account, 's', whole(actual))
      redis.call('EXPIREAT', account, math.ceil(tonumber(ARGV[5 + i])) + 3600)
    end
  end
  return {1, told}
end

if elsewhen(3, 2) then return {2, told} end
local answer = {1, told}
for i = 1, count do
  local spent, reserved = level(KEYS[2 + i])
  answer[#answer + 1] = spent
  answer[#answer + 1] = reserved
end
return answer
"""
