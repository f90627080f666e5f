"""Network volumes on this machine: a folder per volume under `$FLASH_HOME`, reachable where Flash code looks for it.

Flash mounts a volume at `/runpod-volume`. Here that path is a symbolic link, when it can be made; there is one such
path, so the first volume in use has it, and a lock tells other sessions that it is. Every worker is told the folder by
environment variables as well, which always work.
"""

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

from flashmesh.functions.config import ResourceConfig, VolumeConfig
from flashmesh.project.naming import short_hash

MOUNT = Path("/runpod-volume")
VARIABLES = ("FLASH_VOLUME_PATH", "RUNPOD_VOLUME_PATH")
LOCK = ".mount.lock"
"""In the folder of volumes; held, shared, by every session whose workers reach one of them at `MOUNT`."""
_NOT_FOLDER_NAME = re.compile(r"[^A-Za-z0-9._-]")


class Volumes:
    """Arranges volumes for the workers of one session.

    Args:
        home: `$FLASH_HOME`.
        mount: where Flash puts a volume.
        on_note: told, once per reason, when `mount` cannot be had for a volume.
    """

    def __init__(self, home: Path, *, mount: Path = MOUNT, on_note: Callable[[str], None] | None = None) -> None:
        self._folder = home / "volumes"
        self._mount = mount
        self._on_note = on_note
        self._noted: set[str] = set()
        self._lock: int | None = None
        self._linked: Path | None = None

    def arrange(self, config: ResourceConfig) -> dict[str, str]:
        """Make the folder of the resource's volume. Returns the environment that tells a worker where; maybe empty.

        A resource with several volumes has one per data centre; a machine is one place, so the first counts.
        """
        if not config.volumes:
            return {}
        place = self.folder_of(config.volumes[0])
        place.mkdir(parents=True, exist_ok=True)
        refusal = self._link(place)
        if refusal is not None:
            note = f"{self._mount} {refusal}: use the environment variable {VARIABLES[0]} ({place})"
            if note not in self._noted and self._on_note is not None:
                self._noted.add(note)
                self._on_note(note)
        return dict.fromkeys(VARIABLES, str(place))

    def folder_of(self, volume: VolumeConfig) -> Path:
        """Where a volume's files are. Names that are no plain folder names get a hash, so that two never share one."""
        name = volume.name or volume.id or "volume"
        plain = _NOT_FOLDER_NAME.sub("_", name)
        if plain != name or plain.startswith("."):
            plain = f"{plain.lstrip('.')}_{short_hash(name)}"
        return self._folder / plain

    def close(self) -> None:
        """Take the link away if no other session uses it, and let go of the lock."""
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._linked is not None and self._target() == self._linked:
                self._mount.unlink()
        except OSError:
            pass
        os.close(self._lock)
        self._lock = self._linked = None

    def _link(self, place: Path) -> str | None:
        """Make `mount` lead to `place`. Returns why it does not, or None."""
        if self._linked is not None:
            return None if self._linked == place else f"is the volume {self._linked.name} already"
        if (self._mount.is_symlink() or self._mount.exists()) and not (self._is_ours() or self._is_left_over()):
            return "exists already"
        if not os.access(self._mount.parent, os.W_OK):
            return "cannot be made here"
        descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            refusal = self._take(descriptor, place)
        except OSError as error:
            refusal = f"cannot be made here ({error.strerror})"
        if refusal is not None:
            os.close(descriptor)
            return refusal
        self._lock, self._linked = descriptor, place
        return None

    def _take(self, descriptor: int, place: Path) -> str | None:
        """Point the link at `place`, or share it when another session did. Holds a shared lock afterwards."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._target() != place:
                return "belongs to a volume of another session"
        else:
            fresh = self._mount.with_name(f"{self._mount.name}.{os.getpid()}")
            fresh.symlink_to(place)
            fresh.replace(self._mount)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return None

    def _is_ours(self) -> bool:
        target = self._target()
        return target is not None and target.parent == self._folder

    def _is_left_over(self) -> bool:
        """Whether a session with another home made the link and was killed before it could take it away."""
        target = self._target()
        if target is None:
            return False
        try:
            descriptor = os.open(target.parent / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _target(self) -> Path | None:
        return self._mount.readlink() if self._mount.is_symlink() else None
