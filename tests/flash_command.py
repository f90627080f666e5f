"""The real command, for tests that run it: how to start it, ask what it serves, and see that it is gone."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FLASH = str(Path(sys.executable).with_name("flash"))
PATIENCE_S = 60.0
"""How long anything may take on a busy machine."""


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    """Wait for a condition of other processes, which tell nobody when it holds. What it gave."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {PATIENCE_S} s")
        time.sleep(0.01)
    return found


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a command whose home is that folder: nothing of this machine's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLASH_", "RUNPOD_"))}
    return {**kept, "FLASH_HOME": str(home), **more}


def flash(
    home: Path, *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. `env`: more variables."""
    return subprocess.run(
        [FLASH, *arguments],
        env=environment(home, **(env or {})),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )


def announced(home: Path) -> dict[str, Any] | None:
    """What the server of that home says of itself, living or dead, and the folder of its `data`."""
    for path in home.glob("hosts/*/server/server.json"):
        with contextlib.suppress(ValueError, OSError):
            found: dict[str, Any] = json.loads(path.read_text())
            return {**found, "data": str(path.parent)}
    return None


def ask(method: str, url: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, body (as JSON where it is that), and headers by lower-case names. `body`: bytes, or what becomes JSON."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        is_json = "json" in fields.get("content-type", "")
        return answer.status, json.loads(text) if is_json else text.decode(), fields
    finally:
        connection.close()


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        left += parents.get(one, [])
    return found


def is_gone(pid: int) -> bool:
    """Whether that process has ended; it may still be waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in ("Z", "X")
