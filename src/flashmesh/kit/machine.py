"""Which machine this is, and files that several of its processes may make at the same moment.

A home folder may be shared by many machines, so what belongs to one of them needs a folder of its own.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from flashmesh.kit.home import flash_home

VARIABLE = "FLASH_MACHINE_ID"
_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_NAME_LENGTH = 16


def machine_id(
    home: Path | None = None, *, environ: Mapping[str, str] = os.environ, files: tuple[Path, ...] = _FILES
) -> str:
    """A name of this machine, 16 hex digits: the same after a reboot, another one on every other machine.

    The operating system's id, hashed because it is meant to stay on the machine (machine-id(5)). FLASH_MACHINE_ID wins:
    containers of one image may share an id. Where there is neither, a random one is kept in `home/machine-id` (`home`:
    default `$FLASH_HOME`); then machines that share `home` are taken for one.
    """
    found = environ.get(VARIABLE, "").strip() or _given_by_the_system(files)
    if not found:
        home = flash_home(environ) if home is None else home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = create_once(home / "machine-id", lambda: os.urandom(16).hex().encode()).decode()
    return hashlib.sha256(b"flashmesh machine " + found.encode()).hexdigest()[:_NAME_LENGTH]


def host_folder(home: Path, *, environ: Mapping[str, str] = os.environ, make: bool = True) -> Path:
    """`home/hosts/<machine id>`, made if need be (`make`); only this user may look into it."""
    folder = home / "hosts" / machine_id(home, environ=environ)
    for part in (
        (home, folder.parent, folder) if make else ()
    ):  # `parents=True` would make those above with the umask's mode
        part.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def create_once(path: Path, make: Callable[[], bytes], *, mode: int = 0o600) -> bytes:
    """What `path` holds; if it is missing, what `make` returns is written there first.

    Of several processes that find it missing at once, exactly one writes and all return its bytes: a link is made to a
    complete file, and making it fails when the name is taken (on NFS too, where O_EXCL is not to be trusted).
    """
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    temporary = _written(path, make(), mode)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_bytes()


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put `data` in the place of what `path` holds; a reader, and a crash, sees the old bytes or the new ones."""
    temporary = _written(path, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _written(path: Path, data: bytes, mode: int) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _given_by_the_system(files: tuple[Path, ...]) -> str:
    for file in files:
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="ascii", errors="replace").strip()
            if text and text != "uninitialized":
                return text
    return _mac_uuid() if sys.platform == "darwin" else ""


def _mac_uuid() -> str:
    """macOS keeps no file; its kernel knows the hardware's id."""
    import ctypes

    library = ctypes.CDLL(None)
    text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    failed = library.sysctlbyname(b"kern.uuid", text, ctypes.byref(size), None, 0)
    return "" if failed else text.value.decode("ascii", "replace")
