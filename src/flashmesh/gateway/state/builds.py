"""How an artifact that is sent becomes a build: kept, unpacked, and its manifest written down."""

import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from secrets import token_urlsafe
from typing import Any, Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.state.artifacts import ArtifactRefused, ArtifactStore
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import AppId, Build

log = logging.getLogger("flashmesh.server")
MANIFEST: Final = "flash_manifest.json"
"""The manifest's place in an artifact."""
TICKET_S: Final = 15 * 60.0
"""How long an address for an upload counts."""
_MOST_TICKETS: Final = 100


class UploadNotFound(FlashmeshError, LookupError):
    """This address for an upload was not given out, was used, or is too old. Ask for another."""

    code = "UPLOAD_NOT_FOUND"
    status = 404


@dataclasses.dataclass(slots=True)
class Ticket:
    """Leave to send one artifact, without a token. Whoever knows its key may: it is not to be guessed."""

    key: str
    app: AppId
    expires_at: float
    """Seconds since the epoch."""
    build: str | None = None
    """What was sent."""


class Builds:
    """Artifacts and what the State Manager knows of them, together."""

    def __init__(
        self, manager: StateManager, artifacts: ArtifactStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._manager = manager
        self._artifacts = artifacts
        self._clock = clock
        self._tickets: dict[str, Ticket] = {}

    async def receive(self, pieces: AsyncIterator[bytes], id: str, app: str) -> Build:
        """Keep an artifact as a build of an app, which is made when it is not there.

        Raises what `ArtifactStore.receive` and `add` raise.
        """
        await self._artifacts.receive(pieces, id)
        await self._manager.ensure_app(app)
        build = await self.add(id, app)
        await self._tidy()
        return build

    async def add(self, id: str, app: str) -> Build:
        """A build of an artifact that is here.

        Raises AppNotFound, and what its unpacking says about one that is none of ours, which is removed then.
        """
        archive = await self._artifacts.archive(id)
        size = archive.stat().st_size
        try:
            folder = await self._artifacts.unpacked(id)
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        except FlashmeshError as error:
            if error.status < 500:
                await self._artifacts.drop(id)
            raise
        except (OSError, ValueError) as error:
            await self._artifacts.drop(id)
            raise ArtifactRefused(f"The artifact {id} has no manifest that can be read ({error}).") from error
        return await self._manager.add_build(app, id, manifest, bytes=size)

    async def _tidy(self) -> None:
        """With every build that comes: a server may run for months."""
        try:
            await self.sweep()
        except (FlashmeshError, OSError) as error:
            log.warning("Builds that nobody uses could not be removed: %s", error)

    async def sweep(self) -> list[str]:
        """Remove builds that nothing is deployed from nor can be rolled back to; the artifacts that went."""
        left = await self._manager.forget_builds()
        return await self._artifacts.sweep(left)

    # Uploads as Flash's clients make them: an address first, which then takes the bytes without a token.

    def open_ticket(self, app: AppId) -> Ticket:
        now = self._clock()
        self._tickets = {key: one for key, one in self._tickets.items() if one.expires_at > now}
        while len(self._tickets) >= _MOST_TICKETS:
            self._tickets.pop(next(iter(self._tickets)))
        ticket = Ticket(token_urlsafe(24), app, now + TICKET_S)
        self._tickets[ticket.key] = ticket
        return ticket

    async def receive_for(self, pieces: AsyncIterator[bytes], key: str) -> str:
        """Take the bytes for a ticket; the build's id. Raises UploadNotFound, and as `ArtifactStore.receive`."""
        ticket = self._ticket(key)
        if ticket.build is not None:
            raise UploadNotFound
        ticket.build = await self._artifacts.receive(pieces)
        return ticket.build

    async def finish(self, key: str, app: AppId) -> Build:
        """Make a build of what came for a ticket. Raises UploadNotFound, AppNotFound, and as `add`."""
        ticket = self._ticket(key)
        if ticket.app != app or ticket.build is None:
            raise UploadNotFound("No artifact was sent there for this app. Send it with PUT first.")
        build = await self.add(ticket.build, self._manager.app_of_id(app).name)
        self._tickets.pop(key, None)
        return build

    def _ticket(self, key: str) -> Ticket:
        ticket = self._tickets.get(key)
        if ticket is None or ticket.expires_at <= self._clock():
            raise UploadNotFound
        return ticket
