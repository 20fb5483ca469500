-- wrk's script for one verify call sent over and over. `bench/run` hands over the call by
-- environment variables, so that no token stands in a process list, and reads the last line.
--
-- BENCH_TOKEN, BENCH_BODY   the caller's access token and the JSON body.
-- BENCH_CHECK=1             looks into each answer. That costs wrk more than the server's whole
--                           work, so measured rounds go without: there the number of bytes, wrk's
--                           own count of statuses, and the growth of verification_count (which
--                           refusals leave alone) say that the answers were good.

local bodies_checked_max = 3
local workers = {}

function setup(thread)
  table.insert(workers, thread)
end

function init(_)
  wrk.method = "POST"
  wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
  wrk.headers["Content-Type"] = "application/json"
  wrk.body = os.getenv("BENCH_BODY")
  bad = 0
  bad_shown = ""
  -- wrk's own init comes after its defaults, and formats what was set here once.
end

if os.getenv("BENCH_CHECK") == "1" then
  function response(status, _, body)
    if status ~= 200 or not string.find(body, '"is_valid":true', 1, true) then
      bad = bad + 1
      if bad <= bodies_checked_max then
        bad_shown = bad_shown .. status .. " " .. string.sub(body, 1, 200) .. " "
      end
    end
  end
end

function done(summary, latency, _)
  local bad, shown = 0, ""
  for _, worker in ipairs(workers) do
    bad = bad + worker:get("bad")
    shown = shown .. worker:get("bad_shown")
  end
  local errors = summary.errors
  io.write(string.format(
    '\n{"answers":%d,"seconds":%.6f,"bytes":%d,"p50_us":%d,"p99_us":%d,"bad":%d,'
      .. '"failed":%d,"bad_shown":"%s"}\n',
    summary.requests, summary.duration / 1e6, summary.bytes,
    latency:percentile(50), latency:percentile(99), bad,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    (string.gsub(shown, '[%c"\\]', " "))))
end
