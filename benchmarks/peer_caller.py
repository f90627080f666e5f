"""`python -m benchmarks.peer_caller`: calls a deployed endpoint as a worker beside it does, by its socket and its port.

A process of its own, because what calls go through is installed once for a process. Arguments: the project's folder,
its manifest, the folder of its sockets, the port of bare uvicorn, calls in a turn, turns. Prints latencies in seconds
by road and turn, as JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.http_load import request_bytes, some
from flashmesh.functions import caller
from flashmesh.functions.config import ResourceConfig
from flashmesh.worker.calls.assemble import worker_caller
from flashmesh.worker.calls.caller import WorkerCaller


def road(manifest: Path, sockets: Path) -> WorkerCaller:
    """Calls as a worker of this machine makes them by that manifest."""
    return worker_caller(
        endpoint="bench",
        resource_name="bench",
        config=ResourceConfig(resource_type="CpuLiveServerless", name="bench"),
        declared=frozenset(),
        manifest=manifest,
        socket_path=sockets / "bench.sock",
        link="",
        written_name=lambda module: module,
        signer=None,
        token_file=None,
        deployed=True,
        environ={},
    )


def without_sockets(manifest: Path) -> Path:
    """A copy that names ports only."""
    document = json.loads(manifest.read_text())
    for entry in document["resources"].values():
        entry["peer_urls"] = []
    path = manifest.with_name("over-tcp.json")
    path.write_text(json.dumps(document))
    return path


def main() -> None:
    project, manifest, sockets = (Path(argument) for argument in sys.argv[1:4])
    port, count, turns = (int(argument) for argument in sys.argv[4:])
    sys.path.insert(0, str(project))
    from workers import echo  # type: ignore[import-not-found]  # the deployed project's

    def calls(by: WorkerCaller) -> list[float]:
        caller.install(by)
        taken = []
        for _ in range(count):
            begin = time.perf_counter()
            echo.call({"a": 1})
            taken.append(time.perf_counter() - begin)
        return taken

    roads = {"socket": road(manifest, sockets), "port": road(without_sockets(manifest), sockets)}
    raw = request_bytes("/", b'{"input":{"a":1}}')
    ways: dict[str, Any] = {name: lambda by=by: calls(by) for name, by in roads.items()}
    ways["raw"] = lambda: some(port, raw, count)
    for way in ways.values():
        way()
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(turns):
        for name in names[turn % 3 :] + names[: turn % 3]:
            found[name].append(ways[name]())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
