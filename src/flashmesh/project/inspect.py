"""The second pass over one file: import it in a process of its own and ask what it declares.

For what syntax cannot tell: a configuration made by a function call, a setting computed at import. The process
(`inspected.py`) has a time limit and dies with whoever asked.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashmesh.project.model import Problem
from flashmesh.project.naming import prefix_of


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """What the import of one file told.

    Each of `declared` is one function as plain JSON values: the fields of FunctionSpec, `config` (a ResourceConfig as
    `to_dict` gives it) and `resource` {"file", "variable"} (where the configuration object is made). When the import
    fails, `problem` says so, and `declared` holds nothing; `missing_module` is the installed module it lacked, if that
    was the reason.
    """

    file: str
    declared: tuple[dict[str, Any], ...] = ()
    problem: Problem | None = None
    missing_module: str | None = None


def inspect_file(
    root: Path,
    file: str,
    *,
    timeout_s: float,
    python: str = sys.executable,
    site_dirs: Iterable[Path] = (),
    environ: Mapping[str, str] | None = None,
    over: threading.Event | None = None,
) -> Inspection:
    """Import `file` (relative to `root`) in a child process and return what it declares. Blocks; never raises.

    Args:
        timeout_s: limit of the import; past it the child and all it started are killed.
        site_dirs: folders with the resource's own packages; they come before site-packages.
        environ: its variables; default: this process's.
        over: may be set by another thread that no longer wants to know: the child is killed. It is set at the end.
    """
    reader, writer = os.pipe()
    request = json.dumps(
        {"root": str(root), "file": file, "site_dirs": [str(folder) for folder in site_dirs], "answer_fd": writer}
    )
    child = subprocess.Popen(
        [python, "-P", "-m", "flashmesh.project.inspected", request],
        stdin=subprocess.PIPE,  # its end of file tells the child that nobody waits any more
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=root,
        env=environ,
        pass_fds=[writer],
        start_new_session=True,
    )
    os.close(writer)
    over, expired = over or threading.Event(), threading.Event()

    def end() -> None:
        if not over.wait(timeout_s):
            expired.set()
        _kill_group(child.pid)

    ending = threading.Thread(target=end)
    ending.start()
    try:
        with os.fdopen(reader, "rb") as answers:
            answer = answers.read()
    finally:
        over.set()
        ending.join()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
    if not answer:
        reason = f"its import took longer than {timeout_s:g} s" if expired.is_set() else _ended(child.returncode)
        return Inspection(file, problem=_problem(file, None, reason, None))
    return _read_answer(file, answer)


def _read_answer(file: str, answer: bytes) -> Inspection:
    try:
        data = json.loads(answer)
    except ValueError:
        return Inspection(file, problem=_problem(file, None, "its import ended in the middle of its answer", None))
    failure = data.get("failure")
    if failure is not None:
        problem = _problem(file, failure["line"], failure["reason"], failure["traceback"])
        return Inspection(file, problem=problem, missing_module=failure["missing_module"])
    return Inspection(file, declared=tuple(data["declared"]))


def _problem(file: str, line: int | None, reason: str, trace: str | None) -> Problem:
    return Problem(file=file, line=line, reason=reason, traceback=trace, prefix=prefix_of(file))


def _ended(status: int) -> str:
    if status < 0:
        return f"its import was killed by {signal.Signals(-status).name}"
    return f"its import ended the process with status {status}"


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
