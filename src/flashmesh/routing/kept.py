"""A manifest that was fetched, on disk for all workers of an endpoint, and who of them fetches the next one.

Two files stand beside the endpoint's socket. `x.manifest.json` holds the manifest, the moment it was fetched and where
from; it is replaced at once, so that a reader sees one whole, and it survives workers, templates and the machine's
reboots. `x.manifest.lock` is locked by the one that asks; its text is how often was asked, and when the last time: the
count that every worker of the endpoint shows, and what keeps workers of one call each from asking one by one while
nobody answers.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec

from flashmesh.kit.files import write_atomically
from flashmesh.project.model import Manifest

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
NEVER: Final[Stamp] = (0, 0, 0)
_POLL_S: Final = 0.02
"""How often a call that waits for another worker's answer looks whether it is there."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A manifest and how old it is.

    Attributes:
        at: UTC seconds when it was true. source: origin of the State Manager it came from, empty for a file of ours.
    """

    manifest: Manifest
    at: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """How often the State Manager was asked, and when it was last begun (UTC seconds; 0: never)."""

    count: int = 0
    at: float = 0.0


def stamp_of(path: Path) -> Stamp:
    """What changes when a file is replaced or written. Raises OSError."""
    state = os.stat(path)  # noqa: PTH116 - on the way of every call; Path.stat costs twice as much
    return (state.st_mtime_ns, state.st_size, state.st_ino)


class KeptManifest:
    """The two files of one endpoint. All methods do I/O; an unusable folder costs the sharing, never a call.

    Args:
        path: of the manifest; the lock stands beside it.
        clock: UTC seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._lock = path.with_suffix(".lock")
        self._clock = clock

    def stamp(self) -> Stamp:
        """Of the manifest; NEVER when there is none."""
        try:
            return stamp_of(self._path)
        except OSError:
            return NEVER

    def read(self) -> Kept | None:
        """None when there is none, or none that can be understood: it is fetched again then."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Any])
            manifest, at, source = found["manifest"], float(found["fetched_at"]), str(found["fetched_from"])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            return None
        return Kept(manifest, at, source) if isinstance(manifest, dict) else None

    def write(self, manifest: Manifest, source: str) -> Kept:
        """Keep a manifest that was fetched now."""
        kept = Kept(manifest, self._clock(), source)
        document = {"fetched_at": kept.at, "fetched_from": source, "manifest": manifest}
        try:
            write_atomically(self._path, msgspec.json.encode(document).decode(), mode=0o600)
        except OSError as error:
            log.warning("The manifest cannot be kept at %s (%s); every worker asks for itself", self._path, error)
        return kept

    def asked(self) -> Asked:
        """How often the endpoint's workers asked."""
        try:
            return _read_asked(self._lock.read_text("ascii"))
        except (OSError, UnicodeDecodeError):
            return Asked()

    def take(self, *, wait_s: float) -> "Turn | None":
        """The right to ask, until it is given back or this process ends. None: another one has had it for `wait_s`."""
        try:
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return Turn(-1, self._clock)  # nobody can be kept from asking
        until = monotonic() + wait_s
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return Turn(handle, self._clock)
                except BlockingIOError:
                    if monotonic() >= until:
                        os.close(handle)
                        return None
                time.sleep(_POLL_S)
        except BaseException:
            os.close(handle)
            raise


class Turn:
    """The right to ask. Use as a context manager."""

    def __init__(self, handle: int, clock: Callable[[], float]) -> None:
        self._handle = handle
        self._clock = clock

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._handle >= 0:
            os.close(self._handle)  # which unlocks it

    def asked(self) -> Asked:
        """As the last one left it."""
        if self._handle < 0:
            return Asked()
        return _read_asked(os.pread(self._handle, 100, 0).decode("ascii", "replace"))

    def begin(self) -> None:
        """Write down that the State Manager is asked now, before it is: a worker that ends meanwhile has asked, too."""
        self._write(self.asked().count + 1)

    def failed(self) -> None:
        """It did not answer: whoever waited for it has been told as of now."""
        self._write(self.asked().count)

    def _write(self, count: int) -> None:
        if self._handle >= 0:
            text = f"{count} {self._clock():.3f}\n".encode()
            os.pwrite(self._handle, text, 0)
            os.ftruncate(self._handle, len(text))


def _read_asked(text: str) -> Asked:
    count, _, at = text.partition(" ")
    try:
        return Asked(int(count), float(at))
    except ValueError:
        return Asked()
