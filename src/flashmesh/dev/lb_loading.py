"""Importing the files that declare HTTP routes, in threads beside the running server.

Files are imported one after another, so that two of them never race for a module both import; a slow one is overtaken
after ten seconds. One that takes longer than its limit is stopped where it executes Python, and its routes say so.
"""

import asyncio
import ctypes
import dataclasses
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from flashmesh.dev.lb_packages import explain_missing

OVERTAKEN_S: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadProblem:
    """Why a file's routes cannot be served."""

    file: str
    line: int | None
    reason: str
    traceback: str | None = None


class ImportStopped(BaseException):
    """Raised inside an import that took too long. Not an Exception, so that user code does not swallow it."""


class FileLoad:
    """One file's import: `ready` is done once `result` or `problem` is known."""

    def __init__(self, file: str, make: Callable[[], Any], declared: Sequence[str] = ()) -> None:
        """Nothing is imported yet.

        Args:
            file: relative to the project root.
            make: imports the file and returns what its routes need. Runs in a thread.
            declared: the packages that the file's resources declare.
        """
        self.file = file
        self._declared = declared
        self.result: Any = None
        self.problem: LoadProblem | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._make = make
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()

    def start(self, limit_s: float, root: Path) -> None:
        self._thread = threading.Thread(target=self._run, args=(root,), name=f"flash-import-{self.file}", daemon=True)
        self._thread.start()
        self._loop.call_later(limit_s, self._expire, limit_s)

    def _run(self, root: Path) -> None:
        result = problem = None
        try:
            result = self._make()
        except ImportStopped:
            return
        except BaseException as error:
            problem = problem_of(error, self.file, root, self._declared)
        try:
            self._loop.call_soon_threadsafe(self._settle, result, problem)
        except RuntimeError:
            return  # the loop has ended meanwhile, and nobody waits

    def _settle(self, result: Any, problem: LoadProblem | None) -> None:
        if not self.ready.done():
            self.result, self.problem = result, problem
            self.ready.set_result(None)

    def _expire(self, limit_s: float) -> None:
        if self.ready.done():
            return
        reason = f"its import took longer than {limit_s:g} s and was stopped"
        self._settle(None, LoadProblem(file=self.file, line=self._current_line(), reason=reason))
        assert self._thread is not None
        if self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(ImportStopped)
            )

    def _current_line(self) -> int | None:
        """Where in the file the import is now."""
        frame = sys._current_frames().get(self._thread.ident or 0) if self._thread is not None else None
        while frame is not None:
            if frame.f_code.co_filename.endswith(self.file):
                return frame.f_lineno
            frame = frame.f_back
        return None


async def load_all(loads: Sequence[FileLoad], limit_s: float, root: Path) -> None:
    """Start every import; returns when the last one has been started."""
    for load in loads:
        load.start(limit_s, root)
        await asyncio.wait((load.ready,), timeout=OVERTAKEN_S)


def problem_of(error: BaseException, file: str, root: Path, declared: Sequence[str] = ()) -> LoadProblem:
    """Where in the project an import failed, and why, in one line.

    Args:
        declared: the packages that the file's resources declare.
    """
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    missing = explain_missing(error, declared)
    if missing is not None:
        reason = str(missing)
    elif isinstance(error, SystemExit):
        reason = f"the file ends the interpreter (sys.exit({error.code!r})) while it is imported"
    place, line = file, None
    if isinstance(error, SyntaxError) and error.filename:
        place, line = _relative(error.filename, root), error.lineno
        reason = f"{type(error).__name__}: {error.msg}"
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if Path(frame.filename) == root / file:
                line = frame.lineno
    return LoadProblem(file=place, line=line, reason=reason, traceback="".join(traceback.format_exception(error)))


def _relative(filename: str, root: Path) -> str:
    path = Path(filename)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else filename
