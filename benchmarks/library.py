"""What the library itself costs: its import, and a call that stays in the process."""

import json
import subprocess
import sys

from benchmarks.measure import Row, in_turns, python

LOCAL_CALLS = """
import asyncio, json, statistics, time
from flashmesh import CpuLiveServerless, remote
from flashmesh.functions import caller

class Here:
    def is_local(self, declaration):
        return True

caller.install(Here())

async def plain(x):
    return x

decorated = remote(CpuLiveServerless(name="here"))(plain)

async def one(function, count=50_000):
    begin = time.perf_counter()
    for _ in range(count):
        await function(1)
    return (time.perf_counter() - begin) / count * 1e9

async def main():
    rounds = [(await one(decorated), await one(plain)) for _ in range(9)]
    print(json.dumps([statistics.median(a for a, _ in rounds), statistics.median(b for _, b in rounds)]))

asyncio.run(main())
"""


def import_rows() -> list[Row]:
    rows = []
    for name, statement in (
        ("import flashmesh", "import flashmesh"),
        ("from flashmesh import remote, LiveServerless", "from flashmesh import remote, LiveServerless"),
    ):
        product, floor = in_turns(lambda s=statement: python("-c", s), lambda: python("-c", "pass"), rounds=15)
        rows.append(Row(name, product * 1e3, "ms", "python -c pass", floor * 1e3, "≤ 6× (3)"))
    return rows


def local_route() -> Row:
    output = subprocess.run([sys.executable, "-c", LOCAL_CALLS], check=True, capture_output=True, text=True).stdout
    decorated, plain = json.loads(output)
    return Row(
        "local route of a decorated async call",
        decorated,
        "ns",
        "plain call",
        plain,
        "≤ +500 ns (200)",
        f"+{decorated - plain:.0f} ns",
    )
