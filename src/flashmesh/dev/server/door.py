"""How the dev server reaches the session: over the link it was told of, the one of a running session of the directory,
or one that it starts itself (when `.flash/server.py` is served by plain uvicorn)."""

import asyncio
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmesh.dev.session import files
from flashmesh.functions.errors import LinkLost
from flashmesh.wire.client import SessionClient

if TYPE_CHECKING:
    from flashmesh.dev.session.headless import SessionHandle

LINK_VARIABLE = "FLASH_SESSION_LINK"
KEY_FILE = "key"
"""Beside the link's socket: the key that signs pickled values inside one session."""
_PATIENCE_S = 15.0
"""The session may still be starting when the first request comes."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1


class SessionDoor:
    """One connection to the session, made at start and made again when it was lost."""

    def __init__(self, root: Path, link: str | None) -> None:
        """Args: link: path of the session's socket; None = look for one, else start a session."""
        self._root = root
        self._given = link
        self._link: Path | None = Path(link) if link else None
        self._client: SessionClient | None = None
        self._dialling: asyncio.Task[SessionClient] | None = None
        self._own: SessionHandle | None = None

    @property
    def client(self) -> SessionClient | None:
        """The connection, if there is one that works: the hot path need not wait."""
        client = self._client
        return client if client is not None and client.alive else None

    @property
    def link(self) -> Path | None:
        """The session's socket, once it is known."""
        return self._link

    @property
    def key(self) -> bytes | None:
        """The session's signing key, if it can be read."""
        if self._link is None:
            return None
        try:
            return (self._link.parent / KEY_FILE).read_bytes()
        except OSError:
            return None

    def open(self) -> None:
        """Begin to connect; whoever needs the connection waits in `get`."""
        if self._dialling is None:
            self._dialling = asyncio.ensure_future(self._dial())
            self._dialling.add_done_callback(self._dialled)

    async def get(self) -> SessionClient:
        """The connection, made if need be. Raises LinkLost."""
        client = self.client
        if client is not None:
            return client
        self.open()
        assert self._dialling is not None
        return await asyncio.shield(self._dialling)

    async def close(self) -> None:
        """Leave the session; end it, if it was started here."""
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.wait((self._dialling,))
        if self._client is not None:
            await self._client.close()
        if self._own is not None:
            await asyncio.to_thread(self._own.close)

    def _dialled(self, task: "asyncio.Task[SessionClient]") -> None:
        self._dialling = None
        if not task.cancelled() and task.exception() is None:
            self._client = task.result()

    async def _dial(self) -> SessionClient:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _PATIENCE_S
        pause = _FIRST_PAUSE_S
        while True:
            link = self._link
            if link is None:
                link = self._link = await asyncio.to_thread(self._find)
            try:
                return await SessionClient.connect(link)
            except (LinkLost, OSError) as error:
                if loop.time() >= give_up:
                    raise LinkLost(f"The session's socket {link} does not answer. Start `flash run` again.") from error
                if self._given is None:
                    self._link = None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _find(self) -> Path:
        """The link of this directory's running session, or of a new one without a dev server of its own."""
        running = files.live_session(self._root)
        if running is not None:
            return Path(running.link)
        headless: Any = import_module("flashmesh.dev.session.headless")  # only without `flash run`
        self._own = headless.launch(self._root)
        assert self._own is not None
        return Path(self._own.link)


def link_from(environment: Mapping[str, str]) -> str | None:
    """The link that the dev template told of."""
    return environment.get(LINK_VARIABLE) or None
