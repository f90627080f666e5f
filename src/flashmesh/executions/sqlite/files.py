"""Large payloads and results: files beside the database, named by what is in them.

They are written and fsynced on a thread of their own before the row that names them, so that a commit stays as short as
its small rows. Equal bytes are one file; how many rows name it is counted here, and it goes with the last one.
The count is the thread's alone, which does what it is told in order: a file that goes and comes back is written again.
"""

import asyncio
import dataclasses
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from flashmesh.executions.sqlite.rows import Column, pack_items

_UNFINISHED: Final = ".part"
Content = bytes | tuple[list[bytes], int]
"""Bytes, or a generator's items and the position of the first one."""


@dataclasses.dataclass(slots=True, eq=False)
class Keeping:
    """What one row wants kept."""

    row: int
    contents: Mapping[Column, Content]
    """Emptied once they are written."""
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    """Column → file, once written."""
    error: Exception | None = None
    """Why nothing of it was kept."""


class Files:
    """A directory of files. Everything but `_run` and what it calls happens on the loop."""

    def __init__(self, directory: Path, *, loop: asyncio.AbstractEventLoop) -> None:
        self._directory = directory
        self._loop = loop
        self.kept: Callable[[Keeping], None] = lambda keeping: None
        """Told when a row's files are written, or could not be."""
        self.outstanding = 0
        self._counts: Counter[str] = Counter()
        self._jobs: SimpleQueue[Keeping | str | None] = SimpleQueue()
        self._done: SimpleQueue[Keeping] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self, named: Iterable[str]) -> None:
        """Count what the rows name and remove every other file: rows that were never committed left them behind."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._counts.update(named)
        for file in self._directory.iterdir():
            if file.name not in self._counts:
                file.unlink(missing_ok=True)

    def keep(self, row: int, contents: Mapping[Column, Content]) -> None:
        """Write them, then tell `kept`."""
        self.outstanding += 1
        self._do(Keeping(row, contents))

    def release(self, name: str) -> None:
        """One row less names it."""
        self._do(name)

    def read(self, name: str) -> bytes | None:
        """What is in it. None: it is missing or its bytes are not those it was named by."""
        try:
            content = (self._directory / name).read_bytes()
        except OSError:
            return None
        return content if _name(content) == name else None

    def wait(self) -> None:
        """Block until everything is written, and tell who waits."""
        while self.outstanding:
            self._deliver_one(self._done.get())

    def close(self) -> None:
        self.wait()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _do(self, job: Keeping | str) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="flashmesh-files", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _deliver(self) -> None:
        while True:
            try:
                keeping = self._done.get_nowait()
            except Empty:
                return
            self._deliver_one(keeping)

    def _deliver_one(self, keeping: Keeping) -> None:
        self.outstanding -= 1
        self.kept(keeping)

    # The thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, str):
                self._drop(job)
                continue
            try:
                for column, content in job.contents.items():
                    job.names[column] = self._write(pack_items(*content) if isinstance(content, tuple) else content)
            except Exception as error:  # the boundary of one row's files
                job.error = error
                for name in job.names.values():
                    self._drop(name)
                job.names.clear()
            else:
                job.contents = {}
            self._done.put(job)
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                pass  # the loop is closed: `wait` delivers

    def _write(self, content: bytes) -> str:
        name = _name(content)
        if not self._counts[name]:
            part = self._directory / (name + _UNFINISHED)
            try:
                with part.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                part.rename(self._directory / name)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            _sync_directory(self._directory)
        self._counts[name] += 1
        return name

    def _drop(self, name: str) -> None:
        self._counts[name] -= 1
        if self._counts[name] <= 0:
            del self._counts[name]
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError:
                pass  # the next start removes it


def _name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def _sync_directory(directory: Path) -> None:
    """Make the new name durable, not only the bytes."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
