"""Which files a build packs, and which of those that one might expect in it are left out, and why.

Packed is every regular file of the project, except: hidden files and folders (`.env`, `.git`, `.venv`, caches); what
`.gitignore`, `.flashignore` and `--exclude` name; virtual environments, installed packages and byte code; tests; files
that look like secrets; `flash.toml`, whose settings are in the manifest and which may hold values of environments. A
symbolic link is packed as what it leads to, if that is inside the project.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from flashmesh.project.files import ENVIRONMENT_MARKS, SKIPPED_FOLDERS, is_inside, is_text
from flashmesh.project.ignore import IgnoreRules, read_lines

MANIFEST_NAME: Final = "flash_manifest.json"
"""The manifest's place in an artifact."""

_CACHES: Final = re.compile(r".*\.(pyc|pyo|pyd~)$|.*\.egg-info$|.*~$|Thumbs\.db$")
_TESTS: Final = re.compile(r"(test_.*|.*_test|conftest)\.py$")
_SECRETS: Final = re.compile(
    r"""
      .*\.(key|p12|pfx|jks|keystore|kdbx|ppk)          # private keys and stores of them
    | id_(rsa|dsa|ecdsa|ed25519)(_sk)?                 # of SSH
    | .*\.env(\..*)? | \.env.* | env\.(local|prod.*)   # environments: .env, .env.local, prod.env
    | \.?_?netrc | \.pypirc | \.npmrc | \.pgpass | \.htpasswd | htpasswd
    | (secrets?|credentials?)\.(json|toml|ya?ml|ini|txt|csv)
    | (client_secret|service[-_]account).*\.json
    """,
    re.VERBOSE | re.IGNORECASE,
)
_KEY_BEGINS: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")
_KEY_LIMIT: Final = 64 * 1024
"""A file that holds a private key is smaller than this."""
_SOURCES: Final = (".py", ".md", ".ipynb")
"""Files that may quote a private key's first line without holding one are looked at by name only."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f\\\\\ud800-\udfff]")
_PATH_BYTES: Final = 2000
_NAME_BYTES: Final = 255
_DEPTH: Final = 60

Reason = Literal["secret", "link out of the project", "link to nothing", "not a regular file", "not a usable name"]


class PackedFile(msgspec.Struct, frozen=True):
    """One file that is packed. `path` is relative to the root, with forward slashes."""

    path: str
    size: int
    executable: bool


class LeftOut(msgspec.Struct, frozen=True):
    """One file that is not packed though no ignore rule says so."""

    path: str
    reason: Reason


class Contents(msgspec.Struct, frozen=True):
    """What a build packs, sorted by path, and what people should be told it does not."""

    root: Path
    files: tuple[PackedFile, ...]
    left_out: tuple[LeftOut, ...]

    def __contains__(self, path: object) -> bool:
        return any(file.path == path for file in self.files)

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def digests(self) -> dict[str, str]:
        """Path -> 12 hex of the file's bytes. Reads every file. Raises OSError."""
        return {file.path: digest(self.root / file.path) for file in self.files}


def find_contents(root: Path, *, exclude: Sequence[str] = (), skip: Iterable[Path] = ()) -> Contents:
    """Look through the project. Raises OSError for a folder or file that cannot be read: it would be missing later.

    Args:
        exclude: patterns as in a `.gitignore`, from the root; nothing takes back what they name.
        skip: single files, such as the archive that is about to be written.
    """
    walk = _Walk(root, {os.path.realpath(path) for path in skip})
    walk.folder("", IgnoreRules.excluding(exclude), linked=False)
    return Contents(
        root,
        tuple(sorted(walk.files, key=lambda file: file.path)),
        tuple(sorted(walk.left_out, key=lambda file: file.path)),
    )


def is_usable(path: str) -> bool:
    """Whether a file of an artifact may be called so: no control characters, no backslash, not too long or deep."""
    parts = path.split("/")
    if _CONTROL.search(path) or len(parts) > _DEPTH or len(path.encode()) > _PATH_BYTES:
        return False
    return all(len(part.encode()) <= _NAME_BYTES for part in parts)


def digest(path: Path) -> str:
    """12 hex of a file's bytes: what `Closures.sources` has for the same file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, new_digest).hexdigest()[:12]


def new_digest() -> "hashlib.blake2b":
    """The hash of `digest`, of nothing yet."""
    return hashlib.blake2b(digest_size=16)


class _Walk:
    def __init__(self, root: Path, skip: set[str]) -> None:
        self.files: list[PackedFile] = []
        self.left_out: list[LeftOut] = []
        self._root = root
        self._real_root = os.path.realpath(root)
        self._skip = skip

    def folder(self, folder: str, rules: IgnoreRules, *, linked: bool) -> None:
        """Look through one folder (`folder` is empty or ends in a slash), then the folders in it."""
        place = self._root / folder
        with os.scandir(place) as scanned:
            entries = list(scanned)
        names = {entry.name for entry in entries}
        if folder and not names.isdisjoint(ENVIRONMENT_MARKS):
            return
        rules = rules.enter(folder, read_lines(place, names))
        for entry in entries:
            if not is_text(entry.name):
                self._leave_out(ascii(folder + entry.name)[1:-1], "not a usable name")
            else:
                self._entry(folder + entry.name, entry, rules, linked=linked)

    def _entry(self, path: str, entry: os.DirEntry[str], rules: IgnoreRules, *, linked: bool) -> None:
        name, is_folder = entry.name, entry.is_dir()
        verdict = rules.says(path, is_folder=is_folder)
        if verdict is True or _CACHES.fullmatch(name):
            return
        if name.startswith("."):
            if not is_folder and _SECRETS.fullmatch(name):
                self._leave_out(path, "secret")
            return
        place = self._root / path
        if entry.is_symlink() and not (place.exists() and is_inside(place, self._real_root)):
            self._leave_out(path, "link out of the project" if place.exists() else "link to nothing")
        elif is_folder:
            if name not in SKIPPED_FOLDERS and not (linked and entry.is_symlink()):
                self.folder(path + "/", rules, linked=linked or entry.is_symlink())
        elif not _TESTS.fullmatch(name) and path not in ("flash.toml", MANIFEST_NAME):
            self._file(path, entry, wanted=verdict is False)

    def _file(self, path: str, entry: os.DirEntry[str], *, wanted: bool) -> None:
        """`wanted`: a `!` line of an ignore file asks for it; then what its name looks like does not matter."""
        found = entry.stat()
        if not stat.S_ISREG(found.st_mode):
            self._leave_out(path, "not a regular file")
        elif not is_usable(path):
            self._leave_out(ascii(path)[1:-1], "not a usable name")
        elif os.path.realpath(self._root / path) in self._skip:
            return
        elif not wanted and self._is_secret(path, entry.name, found.st_size):
            self._leave_out(path, "secret")
        else:
            self.files.append(PackedFile(path, found.st_size, bool(found.st_mode & stat.S_IXUSR)))

    def _is_secret(self, path: str, name: str, size: int) -> bool:
        if name.endswith(_SOURCES):
            return False
        if _SECRETS.fullmatch(name):
            return True
        return size <= _KEY_LIMIT and _KEY_BEGINS.search((self._root / path).read_bytes()) is not None

    def _leave_out(self, path: str, reason: Reason) -> None:
        self.left_out.append(LeftOut(path, reason))
