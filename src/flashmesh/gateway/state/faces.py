"""The State Manager over HTTP: the manifest, GraphQL, builds and their artifacts."""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from flashmesh.functions.errors import FlashmeshError, PayloadTooLarge
from flashmesh.gateway.access.place import APP_HEADER, ENVIRONMENT_HEADER
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.api.asgi import Receive, Send
from flashmesh.gateway.api.bodies import read_object
from flashmesh.gateway.api.executions import query_fields
from flashmesh.gateway.api.failures import InvalidRequest
from flashmesh.gateway.api.starlette_app import OtherFace, of_reply
from flashmesh.gateway.api.words import dump
from flashmesh.gateway.http import JSON_TYPE, Answer, Request
from flashmesh.gateway.metrics import Sample
from flashmesh.gateway.state.artifacts import check_id, too_large
from flashmesh.gateway.state.asked import Asked, Deployer, moment
from flashmesh.gateway.state.assemble import StateParts
from flashmesh.gateway.state.operations import OPERATIONS, VOCABULARY, GraphQLRequest
from flashmesh.gateway.state.records import Build
from flashmesh.gateway.state.visible import Visible
from flashmesh.worker.lb.reading import ClientGone

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
_PIECE: Final = 256 * 1024
_ENDPOINT_HEADER: Final = b"x-flash-endpoint"
_ENDPOINT: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_MOST_ENDPOINTS: Final = 1000
"""Told apart in the count of queries; those beyond are one."""


class NotAllowed(FlashmeshError):
    """A mutation needs the admin scope: an admin token, on this machine too."""

    code = "FORBIDDEN"
    status = 403


class NoToken(FlashmeshError):
    """A mutation needs an admin token, on this machine too. Send `Authorization: Bearer TOKEN`."""

    code = "UNAUTHORIZED"
    status = 401


class StateFaces:
    """Everything the State Manager answers.

    Args:
        grant: what the token of that name allows.
        deployer: who brings environments to builds; None: nobody does here.
        secure: whether clients reach the server by https.
    """

    def __init__(
        self,
        *,
        parts: StateParts,
        grant: Callable[[str], Grant | None],
        deployer: Deployer | None = None,
        secure: bool = False,
    ) -> None:
        self._manager = parts.manager
        self._artifacts = parts.artifacts
        self._builds = parts.builds
        self._grant = grant
        self._deployer = deployer
        self._scheme = "https" if secure else "http"
        self._queries: Counter[str] = Counter()

    def face(self) -> OtherFace:
        """For the application."""
        return OtherFace(
            operations=OPERATIONS,
            vocabulary=VOCABULARY,
            serves={
                "get_manifest": of_reply(self.manifest),
                "query_state": of_reply(self.graphql),
                "read_state": of_reply(self.graphql_by_get),
                "list_builds": of_reply(self.list_builds),
                "put_artifact": self.put_artifact,
                "get_artifact": self.get_artifact,
                "put_upload": self.put_upload,
            },
        )

    def samples(self) -> Iterable[Sample]:
        """Queries of manifests that were answered, by the endpoint that asked."""
        help = "Queries of manifests answered."
        for endpoint, count in sorted(self._queries.items()):
            yield "flash_manifest_queries_total", "counter", help, {"endpoint": endpoint}, count

    def _count(self, request: Request) -> None:
        endpoint = request.headers.get(_ENDPOINT_HEADER, b"").decode("latin-1")
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            endpoint = ""
        if endpoint not in self._queries and len(self._queries) >= _MOST_ENDPOINTS:
            endpoint = "other"
        self._queries[endpoint] += 1

    def _visible(self, request: Request) -> Visible:
        return Visible(self._manager, self._grant(request.principal) if request.principal else None)

    # The manifest

    async def manifest(self, request: Request) -> Answer:
        asked = query_fields(request.query, frozenset({"app", "env", "token"}))
        visible = self._visible(request)
        scope = self._manager.scope(
            _said(request, APP_HEADER) or asked.get("app"),
            _said(request, ENVIRONMENT_HEADER) or asked.get("env"),
            visible.holder,
        )
        found = self._manager.manifest(scope.app, scope.environment)
        self._count(request)
        return Answer(200, [JSON_TYPE, (b"cache-control", b"no-store")], dump(found))

    # GraphQL

    async def graphql(self, request: Request) -> Answer:
        """By POST."""
        media = request.headers.get(b"content-type", b"application/json").decode("latin-1").partition(";")[0]
        if media.strip().lower() not in ("application/json", "application/graphql-response+json"):
            raise WrongMedia
        wanted: GraphQLRequest = read_object(request.body, GraphQLRequest)
        return await self._execute(request, wanted, by_get=False)

    async def graphql_by_get(self, request: Request) -> Answer:
        """Queries only: what changes something must not be a link."""
        asked = query_fields(request.query, frozenset({"query", "variables", "operationName", "extensions", "token"}))
        if not asked.get("query"):
            raise InvalidRequest("`query` is missing. Send a GraphQL document in it, or by POST.", field="query")
        try:
            variables = json.loads(asked.get("variables") or "null")
        except ValueError as error:
            raise InvalidRequest(f"`variables` is not JSON: {error}.", field="variables") from error
        if not isinstance(variables, dict | None):
            raise InvalidRequest("`variables` is a JSON object.", field="variables")
        wanted = GraphQLRequest(asked["query"], variables, asked.get("operationName"))
        return await self._execute(request, wanted, by_get=True)

    async def _execute(self, request: Request, wanted: GraphQLRequest, *, by_get: bool) -> Answer:
        if len(wanted.query) > MAX_DOCUMENT_BYTES:
            raise PayloadTooLarge(f"The GraphQL document is larger than {MAX_DOCUMENT_BYTES} bytes. Ask for less.")
        from flashmesh.gateway.state import graphql  # with graphql-core: a server that nobody asks starts without it

        try:
            document = graphql.parse(wanted.query, wanted.operationName)
        except graphql.NotGraphQL as error:
            return _problem(error)
        visible = self._visible(request)
        if document.operation is not None and document.changes:
            if by_get:
                return _problem(ByPostOnly())
            if not visible.is_admin:
                return _problem(NoToken() if visible.holder is None else NotAllowed())
        asked = Asked(
            visible=visible,
            builds=self._builds,
            deployer=self._deployer,
            root=f"{self._scheme}://{_said(request, b'host') or 'localhost'}",
            environment=_said(request, ENVIRONMENT_HEADER),
        )
        answer = await graphql.execute(document, asked, variables=wanted.variables, operation=wanted.operationName)
        if asked.manifests:
            self._count(request)
        return Answer(200, [JSON_TYPE, (b"cache-control", b"no-store")], dump(answer))

    # Builds

    async def list_builds(self, request: Request) -> Answer:
        asked = query_fields(request.query, frozenset({"app", "token"}))
        visible = self._visible(request)
        apps = [visible.app(asked["app"])] if asked.get("app") else visible.apps()
        found = [build for app in apps for build in self._manager.builds(app.name)]
        found.sort(key=lambda build: -build.created_at)
        return Answer(200, [JSON_TYPE], dump([_described(build) for build in found]))

    async def put_artifact(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        id = _last(request.path, b"/v1/builds/", b"/artifact")
        asked = query_fields(request.query, frozenset({"app", "token"}))
        app = _said(request, APP_HEADER) or asked.get("app")
        check_id(id)
        visible = self._visible(request)
        if not app:
            app = visible.holder.app if visible.holder is not None else ""
        if not app:
            raise InvalidRequest("`app` is missing: say whose build it is with `?app=`.", field="app")
        visible.may_touch(app)
        build = await self._builds.receive(self._body(request, receive), id, app)
        location = (b"location", b"/v1/builds/" + id.encode() + b"/artifact")
        return Answer(201, [JSON_TYPE, location], dump(_described(build)))

    async def get_artifact(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        id = _last(request.path, b"/v1/builds/", b"/artifact")
        asked = query_fields(request.query, frozenset({"app", "token"}))
        check_id(id)
        self._visible(request).build(id, asked.get("app"))
        await send_file(await self._artifacts.archive(id), id, send, head_only=request.method == b"HEAD")
        return None

    async def put_upload(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        key = _last(request.path, b"/v1/uploads/", b"")
        id = await self._builds.receive_for(self._body(request, receive), key)
        return Answer(200, [JSON_TYPE], dump({"id": id}))

    def _body(self, request: Request, receive: Receive) -> AsyncIterator[bytes]:
        announced = request.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._artifacts.limit_bytes:
            raise too_large(self._artifacts.limit_bytes)
        return body_of(receive)


class WrongMedia(FlashmeshError):
    """GraphQL is sent as application/json here."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class ByPostOnly(FlashmeshError):
    """Mutations are sent by POST."""

    code = "METHOD_NOT_ALLOWED"
    status = 405


async def body_of(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it comes. Raises ClientGone when it ends before it is complete."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if piece := message.get("body", b""):
            yield piece
        if not message.get("more_body", False):
            return


async def send_file(path: Path, id: str, send: Send, *, head_only: bool = False) -> None:
    """A file as the whole answer, in pieces."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        headers = [
            (b"content-type", b"application/gzip"),
            (b"content-length", b"%d" % size),
            (b"etag", b'"%b"' % id.encode()),
            (b"content-disposition", b'attachment; filename="%b.tar.gz"' % id.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        left = 0 if head_only else size
        while left:
            piece = await asyncio.to_thread(file.read, min(_PIECE, left))
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _problem(error: FlashmeshError) -> Answer:
    """A refusal, in GraphQL's form."""
    headers = [JSON_TYPE]
    if error.status == 405:
        headers.append((b"allow", b"POST"))
    body = {"errors": [{"message": str(error), "extensions": {"code": error.code}}]}
    return Answer(error.status, headers, dump(body))


def _described(build: Build) -> dict[str, Any]:
    return {"id": build.id, "app": build.app, "bytes": build.bytes, "createdAt": moment(build.created_at)}


def _said(request: Request, header: bytes) -> str:
    return request.headers.get(header, b"").decode("latin-1").strip()


def _last(path: bytes, before: bytes, after: bytes) -> str:
    return unquote_to_bytes(path[len(before) : len(path) - len(after)]).decode("utf-8", "replace")
