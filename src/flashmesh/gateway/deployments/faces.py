"""The routes of deployments: `/v1/deployments…`, `/v1/plan`, `/v1/undeploy`."""

import asyncio
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.api.asgi import Receive, Send
from flashmesh.gateway.api.bodies import read_object
from flashmesh.gateway.api.executions import query_fields, whole_number
from flashmesh.gateway.api.failures import InvalidRequest
from flashmesh.gateway.api.operations import Operation, Vocabulary
from flashmesh.gateway.api.starlette_app import OtherFace, of_reply
from flashmesh.gateway.api.streams import EventStream, event
from flashmesh.gateway.api.words import dump
from flashmesh.gateway.deployments.documents import environment_document, plan_document
from flashmesh.gateway.deployments.feed import Feed
from flashmesh.gateway.deployments.requests import DeployRequest, PlanRequest, UndeployRequest
from flashmesh.gateway.deployments.service import Deployments
from flashmesh.gateway.http import JSON_TYPE, Answer, Request
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.scope import OutOfScope
from flashmesh.gateway.state.visible import Visible
from flashmesh.project.appname import check_name

PREFIX: Final = b"/v1/deployments/"
EVENTS: Final = b"/events"
MOST_LISTED: Final = 1000
_REFUSED: Final = {400: "Refusal", 404: "Refusal", 409: "Refusal", 413: "Refusal", 422: "Refusal"}

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        id="plan_deployment",
        method="POST",
        path="/v1/plan",
        tag="deployments",
        summary="What a deploy would change; nothing is changed",
        body="PlanRequest",
        responses={200: "any", **_REFUSED},
    ),
    Operation(
        id="create_deployment",
        method="POST",
        path="/v1/deployments",
        tag="deployments",
        summary="Bring an environment to a build, or back to an earlier one; it goes on in the background",
        body="DeployRequest",
        responses={202: "any", **_REFUSED, 507: "Refusal"},
    ),
    Operation(
        id="undeploy",
        method="POST",
        path="/v1/undeploy",
        tag="deployments",
        summary="Take down resources of an environment, or all of them",
        body="UndeployRequest",
        responses={202: "any", **_REFUSED},
    ),
    Operation(
        id="list_environments",
        method="GET",
        path="/v1/environments",
        tag="deployments",
        summary="Environments, the deployment that runs in each, and how many workers their endpoints have",
        queries=("app",),
        responses={200: "any", 400: "Refusal", 404: "Refusal"},
    ),
    Operation(
        id="list_deployments",
        method="GET",
        path="/v1/deployments",
        tag="deployments",
        summary="Deployments of an environment, or of all, newest first",
        queries=("app", "env", "limit"),
        responses={200: "any", 400: "Refusal", 404: "Refusal"},
    ),
    Operation(
        id="get_deployment",
        method="GET",
        path="/v1/deployments/{deploymentId}",
        tag="deployments",
        summary="A deployment with what has become of each resource",
        responses={200: "any", 404: "Refusal"},
    ),
    Operation(
        id="follow_deployment",
        method="GET",
        path="/v1/deployments/{deploymentId}/events",
        tag="deployments",
        summary="What happens in a deployment, as server-sent events; the last is the deployment as it ended",
        responses={200: "text/event-stream", 404: "Refusal"},
    ),
)


class DeploymentHandlers:
    """`serves` gives each operation's handler."""

    def __init__(self, deployments: Deployments, state: StateManager, grant: Callable[[str], Grant | None]) -> None:
        self._deployments = deployments
        self._grant = grant
        self._state = state

    async def plan(self, request: Request) -> Answer:
        asked: PlanRequest = read_object(request.body, PlanRequest)
        self._check(request, asked.app, asked.environment)
        manifest: Any = asked.manifest
        if manifest is None:
            if asked.build is None:
                raise InvalidRequest("`manifest` or `build` is missing.", field="manifest")
            manifest = self._state.build_manifest(asked.app, asked.build)
        found = self._deployments.plan(asked.app, asked.environment, manifest, asked.env)
        place = {"app": asked.app, "environment": asked.environment}
        return Answer(200, [JSON_TYPE], dump({**place, "plan": plan_document(found)}))

    async def create(self, request: Request) -> Answer:
        asked: DeployRequest = read_object(request.body, DeployRequest)
        self._check(request, asked.app, asked.environment)
        if asked.rollback:
            if asked.env:
                raise InvalidRequest("`env` comes with the earlier deployment. Leave it out.", field="env")
            begun, found = await self._deployments.rollback(
                asked.app, asked.environment, asked.build, source=asked.source, by=request.principal
            )
        elif asked.build is None:
            raise InvalidRequest(
                "`build` is missing. PUT its artifact to /v1/builds/{id}/artifact first.", field="build"
            )
        else:
            begun, found = await self._deployments.deploy(
                asked.app,
                asked.environment,
                asked.build,
                given=asked.env,
                source=asked.source,
                replace=asked.replace,
                allow_cpu=asked.allow_cpu,
                by=request.principal,
            )
        return self._begun(begun, found)

    async def undeploy(self, request: Request) -> Answer:
        asked: UndeployRequest = read_object(request.body, UndeployRequest)
        self._check(request, asked.app, asked.environment)
        if asked.all == bool(asked.resources):
            raise InvalidRequest("Name `resources`, or send `all`: one of the two.", field="resources")
        begun, found = await self._deployments.undeploy(
            asked.app,
            asked.environment,
            None if asked.all else asked.resources,
            source=asked.source,
            by=request.principal,
        )
        return self._begun(begun, found)

    def _check(self, request: Request, app: str, environment: str) -> None:
        """Raises BadName, and OutOfScope for a token of another app or environment."""
        check_name(app, what="app")
        check_name(environment, what="environment")
        grant = self._grant(request.principal) if request.principal else None
        if grant is not None and (grant.app not in ("", app) or grant.environment not in ("", environment)):
            theirs = "/".join(name for name in (grant.app, grant.environment) if name)
            raise OutOfScope(f"The token {grant.name!r} counts for {theirs} and not for {app}/{environment}.")

    def _begun(self, begun: Any, found: Any) -> Answer:
        location = (b"location", PREFIX + str(begun.id).encode())
        body = {**self._deployments.document(begun), "plan": plan_document(found)}
        return Answer(202, [JSON_TYPE, location], dump(body))

    async def environments(self, request: Request) -> Answer:
        app = query_fields(request.query, frozenset({"app"})).get("app")
        visible = Visible(self._state, self._grant(request.principal) if request.principal else None)
        apps = [visible.app(app)] if app else visible.apps()
        places = [place for each in apps for place in visible.environments(each.name)]
        workers = self._deployments.workers()
        found = []
        for place in places:
            ids = [str(one.entry.get("endpoint_id")) for one in self._state.served(place.id)]
            found.append(environment_document(place, {id: workers[id] for id in ids if id in workers}))
        return Answer(200, [JSON_TYPE], dump({"environments": found}))

    async def list(self, request: Request) -> Answer:
        wanted = query_fields(request.query, frozenset({"app", "env", "limit"}))
        limit = whole_number(wanted.get("limit"), range(1, MOST_LISTED + 1), "limit", 20)
        visible = Visible(self._state, self._grant(request.principal) if request.principal else None)
        apps = [visible.app(wanted["app"])] if "app" in wanted else visible.apps()
        places = [place for app in apps for place in visible.environments(app.name)]
        found = [
            one
            for place in places
            if wanted.get("env", place.name) == place.name
            for one in self._state.deployments(place.app, place.name)
        ]
        found.sort(key=lambda one: (one.started_at, one.number), reverse=True)
        return Answer(
            200, [JSON_TYPE], dump({"deployments": [self._deployments.document(one) for one in found[:limit]]})
        )

    async def get(self, request: Request) -> Answer:
        deployment = self._state.deployment(_id(request.path))
        self._check(request, deployment.app, deployment.environment)
        return Answer(200, [JSON_TYPE], dump(self._deployments.document(deployment)))

    async def follow(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        id = _id(request.path, EVENTS)
        deployment = self._state.deployment(id)
        self._check(request, deployment.app, deployment.environment)
        feed = self._deployments.feed(id)
        await self._stream(id, feed, receive, send)
        return None

    async def _stream(self, id: str, feed: Feed, receive: Receive, send: Send) -> None:
        stream = EventStream(receive, send)
        lines: list[bytes] = []
        over = False

        async def read() -> None:
            nonlocal over
            async for one in feed.follow():
                lines.append(event(dump(one)))
                stream.news.set()
            over = True
            stream.news.set()

        await stream.begin([])
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stream.watch_client()), group.create_task(read())]
            try:
                while not stream.gone.is_set():
                    while lines and not stream.gone.is_set():
                        await stream.write(lines.pop(0))
                    if over and not lines:
                        await stream.end(event(dump(self._last(id)), b"end"))
                        return
                    if not await stream.wait():
                        await stream.write(b":\n\n")
            finally:
                for task in tasks:
                    task.cancel()

    def _last(self, id: str) -> dict[str, Any]:
        try:
            return self._deployments.document(self._state.deployment(id))
        except FlashmeshError as error:  # its environment was removed meanwhile
            return {"id": id, "status": "interrupted", "error": str(error), "resources": []}


def _id(path: bytes, suffix: bytes = b"") -> str:
    raw = path[len(PREFIX) : len(path) - len(suffix)]
    return unquote_to_bytes(raw).decode("utf-8", "replace")[:200]


def deployment_face(deployments: Deployments, state: StateManager, grant: Callable[[str], Grant | None]) -> OtherFace:
    """The routes, for the application."""
    handlers = DeploymentHandlers(deployments, state, grant)
    return OtherFace(
        operations=OPERATIONS,
        vocabulary=Vocabulary(structs=(DeployRequest, PlanRequest, UndeployRequest)),
        serves={
            "plan_deployment": of_reply(handlers.plan),
            "create_deployment": of_reply(handlers.create),
            "undeploy": of_reply(handlers.undeploy),
            "list_environments": of_reply(handlers.environments),
            "list_deployments": of_reply(handlers.list),
            "get_deployment": of_reply(handlers.get),
            "follow_deployment": handlers.follow,
        },
    )
