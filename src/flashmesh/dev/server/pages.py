"""The dev server's own pages: who it is, whether it is up, and its documentation, which needs no network."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from flashmesh.dev.server import answers
from flashmesh.dev.server.access import Header, Scope, Send
from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.route_book import RouteBook
from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.docs_page import ASSETS, KINDS, asset, docs_page

if TYPE_CHECKING:
    from flashmesh.dev.server.lb import HttpRoutes

log = logging.getLogger("flashmesh.dev")
Page = Callable[[Scope, Send], Awaitable[None]]
TITLE: Final = "Flash Dev Server"
_IMPORT_PATIENCE_S: Final = 3.0
"""How long the docs wait for files with HTTP routes that are still being imported."""
_SESSION_PATIENCE_S: Final = 1.0
_DOCS: Final = docs_page(TITLE)


class Pages:
    """Finds the page of a path. Documentation is made anew for each request: what is known grows with every import."""

    def __init__(self, book: RouteBook, door: SessionDoor, http_routes: "Callable[[], HttpRoutes | None]") -> None:
        self._book = book
        self._door = door
        self._http_routes = http_routes
        self._fixed: dict[str, Page] = {
            "/": _fixed_json({"message": TITLE, "docs": "/docs"}),
            "/ping": _fixed_json({"status": "healthy"}),
            "/healthz": _fixed_json({"status": "ok"}),
            "/readyz": self._ready,
            "/docs": _docs,
            "/openapi.json": self._openapi,
        }

    def find(self, path: str) -> Page | None:
        page = self._fixed.get(path)
        if page is None and path.startswith(ASSETS) and path[len(ASSETS) :] in KINDS:
            return _asset
        return page

    async def _ready(self, scope: Scope, send: Send) -> None:
        if self._door.client is not None:
            await answers.send_json(send, 200, {"status": "ok"})
        else:
            await answers.send_json(send, 503, {"status": "starting"}, [(b"retry-after", b"1")])

    async def _openapi(self, scope: Scope, send: Send) -> None:
        from flashmesh.dev.server import openapi  # only when the docs are looked at

        routes = self._http_routes()
        loaded = await routes.applications(_IMPORT_PATIENCE_S) if routes is not None else {}
        applications = {file: made for file, app in loaded.items() if (made := _described_by(file, app))}
        made = openapi.document(self._book, title=TITLE, described=await self._described(), applications=applications)
        await answers.send_json(send, 200, made, [(b"cache-control", b"no-store")])

    async def _described(self) -> dict[str, Any]:
        """What the imports of workers' modules have told so far, by callable id."""
        try:
            async with asyncio.timeout(_SESSION_PATIENCE_S):
                client = self._door.client or await self._door.get()
                project = await client.query("project")
        except (FlashmeshError, TimeoutError):
            return {}
        resources: dict[str, Any] = project.get("resources", {})
        return {
            function["id"]: function for resource in resources.values() for function in resource.get("functions") or ()
        }


def _described_by(file: str, application: Any) -> dict[str, Any] | None:
    """FastAPI's document of one file; None when a user's type is one that it cannot describe."""
    try:
        found: dict[str, Any] = application.openapi()
    except Exception as error:  # one model must not take everybody's documentation down
        log.warning("%s: FastAPI cannot describe its routes: %s", file, error)
        return None
    return found


def _fixed_json(value: dict[str, Any]) -> Page:
    body = answers.dump(value)

    async def page(scope: Scope, send: Send) -> None:
        await answers.send_bytes(send, 200, [answers.JSON_TYPE], body)

    return page


async def _docs(scope: Scope, send: Send) -> None:
    headers: list[Header] = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
    await answers.send_bytes(send, 200, headers, _DOCS)


async def _asset(scope: Scope, send: Send) -> None:
    name = scope["path"][len(ASSETS) :]
    content = await asyncio.to_thread(asset, name)
    headers: list[Header] = [(b"content-type", KINDS[name]), (b"cache-control", b"max-age=86400")]
    await answers.send_bytes(send, 200, headers, content)
