-- Sends one or several operations in turn, to heroes all over the table, in a scattered order that is always the same.

local HEROES = 10000
local STRIDE = 7919  -- coprime to HEROES, so that every hero is reached

local BATCH = 1000

local function hero(id)
  return ('{"name": "Hero number %d", "age": %d, "secret_name": "Secret number %d"}'):format(id, id % 100, id)
end

local operations = {
  get = function(id) return wrk.format("GET", "/heroes/" .. id) end,
  list = function() return wrk.format("GET", "/heroes/?limit=100") end,
  post = function(id) return wrk.format("POST", "/heroes/", nil, hero(id)) end,
  batch = function(id)  -- one request per BATCH ids, so that beside the others it adds as many heroes as they do
    if id % BATCH ~= 0 then return nil end
    local heroes = {}
    for i = 1, BATCH do
      heroes[i] = hero((id + i * STRIDE) % HEROES + 1)
    end
    return wrk.format("POST", "/heroes/batch", nil, "[" .. table.concat(heroes, ",") .. "]")
  end,
  patch = function(id)
    return wrk.format("PATCH", "/heroes/" .. id, nil, ('{"age": %d}'):format(id * 7 % 100))
  end,
}

local requests = {}
local position = 0

function init(arguments)
  wrk.headers["Content-Type"] = "application/json"
  for i = 1, HEROES do
    local id = i * STRIDE % HEROES + 1
    for _, operation in ipairs(arguments) do
      requests[#requests + 1] = operations[operation](id)
    end
  end
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "errors": %d, "seconds": %f, "p50": %f, "p99": %f}\n',
    summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    summary.duration / 1e6,
    latency:percentile(50) / 1e6,
    latency:percentile(99) / 1e6
  ))
end
