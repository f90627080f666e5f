"""A load of so many connections that each have one request under way, for product and floor alike.

By wrk where it is installed, because the client shares the machine with what it measures: beside bare uvicorn on two
cores it took 26 µs of CPU per request, our client in Python 33, and uvicorn answered nine per cent more. Without wrk
the client is Python for both sides, and a row says so.
"""

import dataclasses
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.http_load import many_at_once, request_bytes
from benchmarks.measure import percentile

SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
{authorization}
wrk.body = {body}

function done(summary, latency, requests)
   local errors = summary.errors
   local broken = errors.connect + errors.read + errors.write + errors.timeout
   local form = '\\n{{"count": %d, "seconds": %f, "p50_us": %f, "p99_us": %f, "refused": %d, "broken": %d}}\\n'
   io.write(string.format(form, summary.requests, summary.duration / 1e6, latency:percentile(50),
      latency:percentile(99), errors.status, broken))
end
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What one turn gave."""

    count: int
    """Answers of any kind."""
    rate: float
    """Good answers per second."""
    p50_s: float
    p99_s: float
    refused: int
    """Answers of 400 and above."""
    broken: int
    """Requests without an answer."""


def client() -> str:
    """Which client this machine has, for a row's note."""
    return "wrk" if shutil.which("wrk") else "Python client"


def load(
    port: int, path: str, body: bytes, *, connections: int, seconds: float, token: str = "", accepted: int = 200
) -> Load:
    """Let so many connections ask for so long. `accepted`: the status of a good answer."""
    wrk = shutil.which("wrk")
    if wrk is not None:
        return _by_wrk(wrk, port, path, body, connections, seconds, token)
    request = request_bytes(path, body, token=token)
    rate, latencies, other = many_at_once(port, request, seconds, connections, accepted=accepted)
    good = latencies or [0.0]
    return Load(len(latencies) + other, rate, percentile(good, 0.5), percentile(good, 0.99), other, 0)


def _by_wrk(wrk: str, port: int, path: str, body: bytes, connections: int, seconds: float, token: str) -> Load:
    authorization = f'wrk.headers["Authorization"] = "Bearer {token}"' if token else ""
    with tempfile.TemporaryDirectory(prefix="flash-bench-") as folder:
        script = Path(folder) / "post.lua"
        script.write_text(SCRIPT.format(authorization=authorization, body=json.dumps(body.decode())))
        command = [
            wrk,
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
        ]
        said = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
        ).stdout
    found = json.loads(said.strip().splitlines()[-1])
    good = found["count"] - found["refused"]
    return Load(
        found["count"],
        good / found["seconds"],
        found["p50_us"] / 1e6,
        found["p99_us"] / 1e6,
        found["refused"],
        found["broken"],
    )
