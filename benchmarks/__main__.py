"""`python -m benchmarks [FILE]`: print each path, its floor and the ratio. Nothing here passes or fails.

With a FILE the rows are written there too, for `python -m benchmarks.report`.
"""

import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import front, library, roads, running, updates, wire
from benchmarks.measure import Row
from benchmarks.product import running as session_of
from benchmarks.product import write_project
from benchmarks.server import server_rows


def rows(folder: Path) -> Iterator[Row]:
    yield from library.import_rows()
    yield library.local_route()
    yield wire.large_argument()
    with tempfile.TemporaryDirectory(prefix="flash-bench-") as scratch:
        yield from front.front_rows(Path(scratch))
    yield running.stopping(folder)
    yield from running.start_to_first_200(folder)
    with session_of(folder) as session:
        session.output("/workers/echo/run_sync", {"x": {"a": 1}})
        yield from running.edit_to_served(session)
        yield from running.cold_start(session)
        yield from running.extra_workers(session)
        yield from running.job_per_call(session)
        yield from running.calls_through_the_server(session)
        yield running.peer_calls(session)
    yield from server_rows(folder.parent)
    yield from roads.road_rows(folder.parent / "roads-bench")
    yield from updates.update_rows(folder.parent / "updates-bench")
    yield from updates.unchanged_rows(folder.parent / "many-bench")


def line(row: Row) -> str:
    floor = f"{row.floor:10.1f} {row.unit:<3} {row.floor_name}" if row.floor is not None else ""
    ratio = f"{row.ratio:6.2f}×" if row.ratio is not None else ""
    return f"{row.name:<62} {row.value:10.1f} {row.unit:<3} {ratio:>8}  {floor:<58} {row.goal:<28} {row.note}".rstrip()


def main() -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # users have compiled files; without them imports cost double
    machine = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    print(f"{'path':<62} {'measured':>14} {'ratio':>8}  {'floor, same run':<58} {'goal':<28}")
    found = []
    with tempfile.TemporaryDirectory(prefix="flash-bench-") as scratch:
        for row in rows(write_project(Path(scratch) / "project")):
            print(line(row), flush=True)
            found.append({**dataclasses.asdict(row), "ratio": row.ratio})
    for path in sys.argv[1:]:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({"machine": machine, "rows": found}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
