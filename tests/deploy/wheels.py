"""Tiny wheels made by hand, so that installs are tested without a network."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, *, requires: tuple[str, ...] = (), content: str = "") -> Path:
    """A wheel with one module `name` that has VERSION and `content`."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{name}.py": f"VERSION = {version!r}\n{content}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {**files, f"{info}/RECORD": _record(files, info)}.items():
            archive.writestr(inside, text)
    return path


def install_by_hand(folder: Path, name: str, version: str, *, metadata: str = "") -> None:
    """A distribution as an installer leaves it, for `importlib.metadata` to find."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
    (folder / f"{name}.py").write_text(f"VERSION = {version!r}\n")


def _record(files: Mapping[str, str], info: str) -> str:
    lines = []
    for inside, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{inside},sha256={digest},{len(text.encode())}")
    return "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
