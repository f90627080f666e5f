"""Importing the files that declare HTTP routes, in threads beside the running server.

Files are imported one after another, so that two of them never race for a module both import; a slow one is overtaken
after ten seconds. One that takes longer than its limit is stopped where it executes Python, and its routes say so.
"""

import asyncio
import ctypes
import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

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

    def __init__(self, file: str, make: Callable[[], Any], explain: Callable[[BaseException], LoadProblem]) -> None:
        """Nothing is imported yet.

        Args:
            file: relative to the project root.
            make: imports the file and returns what its routes need. Runs in a thread.
            explain: says what went wrong when it raises.
        """
        self.file = file
        self._explain = explain
        self.result: Any = None
        self.problem: LoadProblem | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._make = make
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()

    def start(self, limit_s: float) -> None:
        self._thread = threading.Thread(target=self._run, name=f"flash-import-{self.file}", daemon=True)
        self._thread.start()
        self._loop.call_later(limit_s, self._expire, limit_s)

    def _run(self) -> None:
        result = problem = None
        try:
            result = self._make()
        except ImportStopped:
            return
        except BaseException as error:
            problem = self._explain(error)
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


async def load_all(loads: Sequence[FileLoad], limit_s: float) -> None:
    """Start every import; returns when the last one has been started."""
    for load in loads:
        load.start(limit_s)
        await asyncio.wait((load.ready,), timeout=OVERTAKEN_S)
