"""The routes of deployments, as a client of the application sees them."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployments_fixtures import Bench, manifest_of, play, resource

from flashmesh.gateway import api
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.api.asgi import PRINCIPAL
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.deployments.faces import OPERATIONS, deployment_face
from flashmesh.queueing.logbook import LogBook
from flashmesh.queueing.ports import LoopClock

A, B = "a" * 12, "b" * 12
GRANTS = {
    "ci": Grant(name="ci", id="1", scope="admin"),
    "of-blog": Grant(name="of-blog", id="2", scope="admin", app="blog", limited=True),
}


def ask(folder: Path, scenario: Callable[[Bench, httpx.AsyncClient], Awaitable[None]], principal: str = "ci") -> None:
    async def run(bench: Bench) -> None:
        import asyncio

        inner: Any = api.application(
            calls=Calls(dispatcher=bench.dispatcher, clock=LoopClock(asyncio.get_running_loop())),
            registry=bench.registry,
            logbook=LogBook(),
            complete=lambda execution, attempt, body: None,
            faces=(deployment_face(bench.deployments, bench.state, GRANTS.get),),
        )

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await inner({**scope, PRINCIPAL: principal}, receive, send)

        transport = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
            await scenario(bench, client)

    play(folder, run)


def test_a_deployment_is_accepted_followed_and_looked_at(tmp_path: Path) -> None:
    """202 with its plan and place; its events end in the document that GET answers."""

    async def scenario(bench: Bench, client: httpx.AsyncClient) -> None:
        build = await bench.build(A, resource("cpu"), resource("gpu"))
        bench.target.broken = {"gpu": "no torch"}
        body = {"app": "shop", "build": build, "source": "laptop:/shop"}
        begun = await client.post("/v1/deployments", json=body)
        assert begun.status_code == 202
        document = begun.json()
        assert begun.headers["location"] == f"/v1/deployments/{document['id']}"
        assert (document["environment"], document["by"], document["source"]) == ("production", "ci", "laptop:/shop")
        assert [one["name"] for one in document["plan"]["new"]] == ["cpu", "gpu"]
        events = await client.get(f"/v1/deployments/{document['id']}/events")
        assert events.headers["content-type"].startswith("text/event-stream")
        told = [line.removeprefix("data: ") for line in events.text.splitlines() if line.startswith("data: ")]
        states = {(one["resource"], one["state"]): one["error"] for one in map(json.loads, told[:-1])}
        assert states[("cpu", "deployed")] is None and states[("gpu", "failed")] == "no torch"
        last = json.loads(told[-1])
        assert last == (await client.get(f"/v1/deployments/{document['id']}")).json()
        assert last["status"] == "failed" and last["tookMs"] >= 0
        assert {one["resource"]: one["state"] for one in last["resources"]} == {"cpu": "deployed", "gpu": "failed"}
        again = await client.get(f"/v1/deployments/{document['id']}/events")  # also when it has long ended
        assert json.loads(again.text.splitlines()[-2].removeprefix("data: ")) == last
        (listed,) = (await client.get("/v1/deployments?app=shop&env=production")).json()["deployments"]
        assert listed == last
        (environment,) = (await client.get("/v1/environments")).json()["environments"]
        assert (environment["app"], environment["resources"], environment["running"]) == ("shop", 2, None)
        assert environment["workers"] == {}  # the bench has no endpoints of its own

    ask(tmp_path, scenario)


def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    """Not even the app is made."""

    async def scenario(bench: Bench, client: httpx.AsyncClient) -> None:
        found = await client.post("/v1/plan", json={"app": "shop", "manifest": manifest_of(resource("cpu"))})
        assert [one["name"] for one in found.json()["plan"]["new"]] == ["cpu"]
        assert bench.state.apps() == []

    ask(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/v1/deployments", {"app": "shop"}, 400, "build"),
        ("/v1/deployments", {"app": "shop", "build": A, "bild": A}, 400, "bild"),
        ("/v1/deployments", {"app": "shop", "build": A}, 404, "flash deploy"),
        ("/v1/deployments", {"app": "shop", "rollback": True}, 404, "flash"),
        ("/v1/deployments", {"app": "shop", "rollback": True, "env": {"a": {"B": "c"}}}, 400, "env"),
        ("/v1/plan", {"app": "shop"}, 400, "manifest"),
        ("/v1/plan", {"app": "shop", "manifest": {"no": "manifest"}}, 422, "flash build"),
        ("/v1/undeploy", {"app": "shop"}, 400, "all"),
        ("/v1/undeploy", {"app": "shop", "all": True, "resources": ["x"]}, 400, "resources"),
        ("/v1/undeploy", {"app": "nobody", "all": True}, 404, "flash app list"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(
    tmp_path: Path, path: str, body: dict[str, Any], status: int, word: str
) -> None:
    async def scenario(bench: Bench, client: httpx.AsyncClient) -> None:
        found = await client.post(path, json=body)
        assert found.status_code == status, found.text
        assert word in found.json()["message"]

    ask(tmp_path, scenario)


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 64, "-x", "ä"])
def test_names_that_could_not_be_names_are_refused(tmp_path: Path, name: str) -> None:
    """Of an app as of an environment."""

    async def scenario(bench: Bench, client: httpx.AsyncClient) -> None:
        for place in ({"app": name}, {"app": "shop", "environment": name}):
            for path in ("/v1/deployments", "/v1/plan"):
                found = await client.post(path, json={**place, "build": A})
                assert found.status_code in (400, 422), found.text
        assert bench.state.apps() == []

    ask(tmp_path, scenario)


def test_a_token_of_another_app_neither_changes_nor_sees_anything(tmp_path: Path) -> None:
    async def scenario(bench: Bench, client: httpx.AsyncClient) -> None:
        build = await bench.build(A, resource("cpu"))
        ended = await bench.deploy(build)
        for path, body in (
            ("/v1/deployments", {"app": "shop", "build": build}),
            ("/v1/plan", {"app": "shop", "build": build}),
            ("/v1/undeploy", {"app": "shop", "all": True}),
        ):
            found = await client.post(path, json=body)
            assert found.status_code == 403 and "of-blog" in found.json()["message"]
        for suffix in ("", "/events"):
            assert (await client.get(f"/v1/deployments/{ended.id}{suffix}")).status_code == 403
        assert (await client.get("/v1/deployments")).json() == {"deployments": []}
        assert (await client.get("/v1/environments")).json() == {"environments": []}

    ask(tmp_path, scenario, principal="of-blog")


def test_every_route_is_described(tmp_path: Path) -> None:
    """And everything that a description refers to is there."""

    async def scenario(bench: Bench, client: httpx.AsyncClient) -> None:
        document = (await client.get("/openapi.json")).json()
        for operation in OPERATIONS:
            assert operation.method.lower() in document["paths"][operation.path]
        references = {word for word in json.dumps(document).split('"') if word.startswith("#/components/schemas/")}
        missing = {one for one in references if one.rpartition("/")[2] not in document["components"]["schemas"]}
        assert missing == set()

    ask(tmp_path, scenario)
