"""What the server writes: a closing line per invocation, its own notices, and what endpoints print.

Nothing here waits for a disk, a terminal or a pipe. Lines go into bounded buffers that threads write in batches; what
does not fit is dropped, counted, and said in the log itself as soon as something fits again.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.wire.frames import Log

BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Text that may wait for a slow reader. Higher: longer stalls without loss, and more memory while they last."""
BATCH_S: Final = 0.02
"""How long a line may wait for others: a thread that woke up for each would take half of the processor."""
GATHERED_LINES: Final = 128
"""Closing lines that are encoded in one go: a tenth of a millisecond of the loop."""
_PIECE: Final = 256 * 1024


class Writer:
    """Hands batches to `write` on a thread of its own. `put` never waits.

    Args:
        write: takes a list of byte strings, in order. What it raises is counted as a loss.
        on_loss: makes the line that says how many were dropped.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[list[bytes]], None],
        *,
        on_loss: Callable[[int], bytes] | None = None,
        limit_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.dropped = 0
        self._write = write
        self._on_loss = on_loss
        self._limit = limit_bytes
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._unsaid = 0
        self._wake = threading.Event()
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, text: bytes, lines: int = 1) -> None:
        """Write it soon, or drop it when too much waits already. `lines`: how many it holds."""
        with self._lock:
            if self._bytes + len(text) > self._limit:
                self.dropped += lines
                self._unsaid += lines
                return
            self._waiting.append(text)
            self._bytes += len(text)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, at most `timeout_s`; a stuck reader is left behind."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._closing:
                time.sleep(BATCH_S)
            closing = self._closing
            self._wake.clear()
            while batch := self._take():
                self._pass_on(batch)
            if closing:
                return

    def _take(self) -> list[bytes]:
        """What waits, in pieces, so that its room is free again as it is written."""
        with self._lock:
            batch: list[bytes] = []
            size = 0
            while self._waiting and size < _PIECE:
                batch.append(self._waiting.popleft())
                size += len(batch[-1])
            self._bytes -= size
            lost, self._unsaid = self._unsaid, 0
        if lost and self._on_loss is not None:
            batch.insert(0, self._on_loss(lost))
        return batch

    def _pass_on(self, batch: list[bytes]) -> None:
        try:
            self._write(batch)
        except Exception:  # a disk that is full, a reader that is gone: the server goes on without its log
            self.dropped += len(batch)


def to_descriptor(fd: int) -> Callable[[list[bytes]], None]:
    """Writes batches to a descriptor, whole, blocking as it does."""

    def write(batch: list[bytes]) -> None:
        rest = memoryview(b"".join(batch))
        while rest:
            rest = rest[os.write(fd, rest) :]

    return write


class _Text:
    """Where LogPrinter writes to: into a Writer."""

    def __init__(self, writer: Writer, terminal: bool) -> None:
        self._writer = writer
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self._writer.put(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """The writer's thread does that."""


class RotatedFiles:
    """One file per name in a folder. A file that has grown past its limit becomes `name.1`, that one `name.2`."""

    MOST_OPEN: Final = 64

    def __init__(self, folder: Path, *, limit_bytes: int, keep: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._keep = keep
        self._open: dict[str, tuple[int, int]] = {}
        """Descriptor and size by name, the one used last at the end."""

    def add(self, name: str, text: bytes) -> None:
        """Append to the file of `name`."""
        known = self._open.pop(name, None)
        descriptor, size = self._opened(name) if known is None else known
        if size and size + len(text) > self._limit:
            os.close(descriptor)
            self._rotate(name)
            descriptor, size = self._opened(name)
        os.write(descriptor, text)
        self._open[name] = descriptor, size + len(text)

    def close(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _opened(self, name: str) -> tuple[int, int]:
        while len(self._open) >= self.MOST_OPEN:
            os.close(self._open.pop(next(iter(self._open)))[0])
        descriptor = os.open(self.path(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return descriptor, os.fstat(descriptor).st_size

    def _rotate(self, name: str) -> None:
        path = self.path(name)
        for number in range(self._keep - 1, 0, -1):
            older = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                older.replace(path.with_name(f"{path.name}.{number}"))
        path.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".")
        return self._folder / f"{plain[:100] or 'unnamed'}.log"


class ServerLog:
    """All that a server writes. Closing it writes what waits.

    Args:
        form: auto, json or pretty; as in ServerSettings.
        files: where endpoints' output is kept; None = nowhere.
        out, err: descriptors.
    """

    def __init__(
        self,
        *,
        form: str = "auto",
        invocations: bool = True,
        files: RotatedFiles | None = None,
        out: int = 1,
        err: int = 2,
    ) -> None:
        terminal = os.isatty(err)
        self._json = form == "json" or (form == "auto" and not terminal)
        self._invocations = invocations
        self._err = Writer("log", to_descriptor(err), on_loss=self._loss)
        self._out = Writer("output", to_descriptor(out))
        self._files = files
        self._kept = Writer("endpoint logs", self._keep) if files is not None else None
        self._printer = LogPrinter(
            out=_Text(self._out, os.isatty(out)), err=_Text(self._err, terminal), pretty=not self._json
        )
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._gathered: list[tuple[str, Mapping[str, Any]]] = []
        """Events of this moment: encoded together, a line costs a third of what it does alone."""

    @property
    def dropped(self) -> int:
        """Lines that were lost because nobody took them fast enough."""
        return sum(writer.dropped for writer in (self._err, self._out, self._kept) if writer is not None)

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Something the queues tell (an EventLog): the end of an invocation, or what happened to an endpoint."""
        is_end = name == "invocation"
        if is_end and not self._invocations:
            return
        if not self._json:
            if is_end:
                self._printer.closing(fields)
            return
        gathered = self._gathered
        gathered.append((name, fields))
        if len(gathered) == 1:
            self._soon()
        elif len(gathered) >= GATHERED_LINES:
            self._pass_on()

    def notice(self, text: str, *, level: str = "info", **fields: Any) -> None:
        """Something of the server's own."""
        self._pass_on()
        self._printer.notice(text, level=level, **fields)

    def plain(self, text: str) -> None:
        """Text for people, on stderr."""
        self._printer.plain(text)

    def output(self, line: Log) -> None:
        """What user code printed: shown, and kept in its endpoint's file."""
        self._printer.output(
            function=line.function, endpoint=line.endpoint, text=line.text, stream=line.stream, dropped=line.dropped
        )
        if self._kept is not None:
            self._kept.put(f"{line.endpoint}\0{_stamp(line.at_ms / 1000)} {line.stream} {line.text}".encode())

    def close(self) -> None:
        self._pass_on()
        for writer in (self._err, self._out, self._kept):
            if writer is not None:
                writer.close()
        if self._files is not None:
            self._files.close()

    def _soon(self) -> None:
        try:
            asyncio.get_running_loop().call_later(BATCH_S, self._pass_on)
        except RuntimeError:
            self._pass_on()  # not on a loop: nobody would come back

    def _pass_on(self) -> None:
        gathered = self._gathered
        if gathered:
            at, encode = _stamp(time.time()).encode(), self._encoder.encode
            lines = [
                b'{"at":"%b","event":"%b"%b%b\n' % (at, name.encode(), b"," if fields else b"", encode(fields)[1:])
                for name, fields in gathered
            ]
            self._err.put(b"".join(lines), len(lines))
            gathered.clear()

    def _loss(self, count: int) -> bytes:
        text = f"{count} lines were dropped: they were not read fast enough"
        if not self._json:
            return f"… {text}\n".encode()
        line = {"event": "notice", "at": _stamp(time.time()), "level": "warning", "message": text, "dropped": count}
        return self._encoder.encode(line) + b"\n"

    def _keep(self, batch: list[bytes]) -> None:
        assert self._files is not None
        texts: dict[str, list[bytes]] = {}
        for entry in batch:
            name, _, text = entry.partition(b"\0")
            texts.setdefault(name.decode(), []).append(text.rstrip(b"\n") + b"\n")
        for endpoint, lines in texts.items():
            self._files.add(endpoint, b"".join(lines))


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
