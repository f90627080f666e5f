"""A State Manager on a real database file, which can be closed and opened again."""

import asyncio
import functools
import gzip
import hashlib
import io
import tarfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flashmesh.executions.sqlite.database import Database
from flashmesh.gateway.state.manager import StateManager

T = TypeVar("T")
BUILD = "0123456789ab"
OTHER_BUILD = "ba9876543210"


class State:
    """One server's State Manager over its lives. Sync: everything runs on a loop of its own.

    `now` is what its clock says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1_700_000_000.0
        self.loop = asyncio.new_event_loop()
        self._open()

    def _open(self) -> None:
        async def made() -> None:
            self.database = Database(self.path, loop=self.loop)
            try:
                self.manager = StateManager(self.database, clock=lambda: self.now)
            except BaseException:
                self.database.close()
                raise

        self.loop.run_until_complete(made())

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.loop.run_until_complete(awaited())

    def restart(self) -> None:
        self.database.close()
        self._open()

    def close(self) -> None:
        self.database.close()
        self.loop.close()

    def execute(self, sql: str, *parameters: Any) -> None:
        """Something else writes into the database."""
        import sqlite3

        connection = sqlite3.connect(self.path)
        connection.execute(sql, parameters)
        connection.commit()
        connection.close()


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def entry(build: str = BUILD, name: str = "gpu", **more: Any) -> dict[str, Any]:
    """A resource's entry of a deployed manifest."""
    return {
        "build": build,
        "endpoint_id": f"{name}-0a1b2c3d",
        "endpoint_url": f"http://127.0.0.1:7001/{name}",
        "status": "deployed",
        "functions": [{"name": f"{name}_call", "id": f"{name}.{name}_call", "module": name}],
        **more,
    }


def packed(files: dict[str, bytes]) -> tuple[bytes, str]:
    """A tar.gz of those files, and its build id."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    archive = gzip.compress(raw.getvalue(), mtime=0)
    return archive, hashlib.sha256(archive).hexdigest()[:12]


def pieces(data: bytes, size: int = 64 * 1024) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def plain_unpack(archive: Path, folder: Path) -> dict[str, Any]:
    """What the store asks of an unpacker, for archives that the test made itself; it looks at nothing in them."""
    part = folder.with_name(f".{folder.name}")
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter="data")
    part.rename(folder)
    return {}
