"""The store's database as the parts of the control plane use it that keep something of their own."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from flashmesh.functions.errors import FlashmeshError


class Database(Protocol):
    """Everything is called on the event loop's thread."""

    path: Path

    def add_schema(self, name: str, statements: Sequence[str]) -> None: ...

    def write(
        self, sql: str, parameters: Sequence[Any] = (), then: Callable[[Exception | None], None] | None = None
    ) -> None:
        """`then` is called on the event loop once it is durable, or with why it is not."""
        ...

    def write_together(
        self, statements: Sequence[tuple[str, Sequence[Any]]], then: Callable[[Exception | None], None] | None = None
    ) -> None:
        """As `write`, of several statements: after a crash too, all of them were written or none."""
        ...

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...


class NotStored(FlashmeshError):
    """The change could not be stored, so it was not made. Try again."""

    code = "STORE_UNAVAILABLE"
    status = 503


async def durable(database: Database, *statements: tuple[str, Sequence[Any]]) -> None:
    """Write them, all or none; returns when they are durable.

    Raises:
        sqlite3.IntegrityError: a rule of the tables forbids it, and nothing was written.
        StoreUnavailable, NotStored: it could not be written.
    """
    import sqlite3  # the server's store has it already; nothing else of this package needs it

    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def then(error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    database.write_together(statements, then)
    try:
        await done
    except (FlashmeshError, sqlite3.IntegrityError):
        raise
    except Exception as error:
        raise NotStored(f"the change could not be stored: {error}. Nothing was changed; try again") from error
