"""Imports one package as a zygote would, asks the gate, forks twenty children that use it, and prints what happened.

`python fork_probe.py SETTINGS` with SETTINGS = {"name", "at_import", "in_child"} (code). Prints one line of JSON.
"""

import gc
import importlib.metadata
import json
import os
import signal
import sys
import time
from typing import Any

CHILDREN = 20
ENOUGH = 3
"""Hung children until the rest is not tried."""
LIMIT_S = 10.0


def main(settings: dict[str, str]) -> None:
    from flashmesh.worker.template import gate, numeric

    before = numeric.limit(os.environ)
    gc.disable()
    space: dict[str, object] = {}
    started = time.perf_counter()
    exec(settings["at_import"], space)
    import_s = time.perf_counter() - started
    seen = gate.observe()
    decision = gate.verdict(seen)
    known = numeric.libraries()
    gc.freeze()
    numeric.before_first_fork(before, known)
    outcomes: list[tuple[str, int]] = []
    while len(outcomes) < CHILDREN and sum(how == "hung" for how, _ in outcomes) < ENOUGH:
        outcomes.append(child(settings["in_child"], space, before, known))
    memory = [found for _, found in outcomes if found]
    result = {
        "version": version(settings["name"]),
        "import_s": round(import_s, 2),
        "python_threads": len(seen.python_threads),
        "native_threads": seen.native_threads,
        "forkable": isinstance(decision, gate.Forkable),
        "reason": getattr(decision, "reason", ""),
        "children": len(outcomes),
        "hung": sum(how == "hung" for how, _ in outcomes),
        "failed": sum(how not in ("hung", "ok") for how, _ in outcomes),
        "private_mb": round(sum(memory) / len(memory) / 1e6, 1) if memory else None,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def child(code: str, space: dict[str, object], before: dict[str, str | None], known: Any) -> tuple[str, int]:
    """Fork one, let it use the package, and say how that ended and how much memory it had for itself."""
    from flashmesh.worker.template import hygiene, numeric

    done_read, done_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(go_write)
            numeric.restore(before, known, os.environ, forked=True)
            hygiene.reseed()
            gc.enable()
            exec(code, space)
            os.write(done_write, b"x")
            os.read(go_read, 1)
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    os.close(go_read)
    os.close(done_write)
    used = wait_readable(done_read, LIMIT_S) and os.read(done_read, 1) == b"x"
    memory = hygiene.private_bytes(pid) if used else 0
    os.close(go_write)
    end = time.monotonic() + (LIMIT_S if used else 0.5)
    status = None
    while status is None and time.monotonic() < end:
        found, raw = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(raw) if found else None
        if status is None:
            time.sleep(0.002)
    os.close(done_read)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "hung", memory
    return ("ok" if status == 0 else f"status {status}"), memory


def wait_readable(fd: int, seconds: float) -> bool:
    import select

    return bool(select.select([fd], [], [], seconds)[0])


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
