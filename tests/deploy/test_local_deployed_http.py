"""Deployed endpoints with HTTP routes at their own TCP address: who may call, and that calls outlive an update."""

import asyncio

import httpx
import pytest
from local_deployed_fixtures import ENDPOINT, House, play
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from flashmesh.project.manifest import EndpointAddress

SOURCE = """
import asyncio
import os
from fastapi import Request, WebSocket
from flashmesh import Endpoint

web = Endpoint(name="m", cpu="cpu3g-2-8"{settings})


@web.get("/hello/{{name}}")
async def hello(name: str, request: Request):
    return {{"hello": name, "pid": os.getpid(), "version": {version}, "sent": request.headers.get("authorization")}}


@web.get("/chat")
async def chat(websocket: WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


@web.get("/slow")
async def slow():
    await asyncio.sleep(0.5)
    return {version}
"""


class HttpHouse(House):
    """Deploys the routes above."""

    def write(self, version: int | str, *, settings: str = "", more: str = "") -> None:
        self.builds += 1
        self.root = self.folder / f"build-{self.builds}"
        self.root.mkdir()
        (self.root / "m.py").write_text(SOURCE.format(version=version, settings=settings) + more)


def client(address: EndpointAddress, **headers: str) -> httpx.AsyncClient:
    assert address.endpoint_url is not None
    return httpx.AsyncClient(base_url=address.endpoint_url, headers=headers, timeout=60)


def test_a_deployed_endpoint_answers_at_its_address_whom_it_may() -> None:
    """Programs of this machine, and tokens of its environment, which its own code never sees; no other site's page."""

    async def story(house: HttpHouse) -> None:
        address = await house.deploy(1)
        async with client(address) as http:
            assert (await http.get("/hello/you")).json()["hello"] == "you"
            page = await http.get("/hello/you", headers={"origin": "https://evil.example"})
            assert page.status_code == 403
            named = await http.get("/hello/you", headers={"host": "evil.example"})
            assert named.status_code == 403
            assert (await http.get("/ping", headers={"host": "evil.example"})).json() == {"status": "healthy"}
            forged = await http.get(
                "/hello/you", headers={"authorization": "Bearer " + house.token("call")[:-4] + "AAAA"}
            )
            assert forged.status_code == 401
            other = house.token("call", app="other")
            assert (await http.get("/hello/you", headers={"authorization": f"Bearer {other}"})).status_code == 403
            good = house.token("peer", app="shop", environment="production")
            told = await http.get("/hello/you", headers={"authorization": f"Bearer {good}", "host": "evil.example"})
            assert (told.status_code, told.json()["sent"]) == (200, None)
            foreign = await http.get("/hello/you", headers={"authorization": "Bearer of-somebody-else"})
            assert foreign.json()["sent"] == "Bearer of-somebody-else"
            again = await asyncio.gather(*(http.get("/slow") for _ in range(8)))
            assert {answer.status_code for answer in again} == {200}
        assert address.endpoint_url is not None
        url = address.endpoint_url.replace("http", "ws") + "/chat"
        async with connect(url) as chat:
            await chat.send("hi")
            assert await chat.recv() == "HI"
        with pytest.raises(InvalidStatus):
            await connect(url, origin="https://evil.example")  # type: ignore[arg-type]

    play_http(story)


def test_a_public_endpoint_answers_everybody() -> None:
    async def story(house: HttpHouse) -> None:
        address = await house.deploy(1, settings=", public=True")
        async with client(address, origin="https://anybody.example", host="anything.example") as http:
            assert (await http.get("/hello/you")).status_code == 200

    play_http(story)


def test_an_update_keeps_address_and_requests() -> None:
    async def story(house: HttpHouse) -> None:
        address = await house.deploy(1)
        async with client(address) as http:
            running = asyncio.ensure_future(http.get("/slow"))
            house.write(2)
            later = await house.deployments.deploy(house.wanted(address=address.endpoint_url))
            assert later.endpoint_url == address.endpoint_url
            assert (await running).json() == 1
            last = await http.get("/hello/you")
            if last.json()["version"] == 1:  # over a connection kept from before, which ends with this answer
                assert last.headers["connection"] == "close"
            assert (await http.get("/hello/you")).json()["version"] == 2
            assert house.deployments.target_of(ENDPOINT) is not None

    play_http(story)


def test_a_build_whose_routes_cannot_be_served_is_refused_and_the_one_before_serves_on() -> None:
    from flashmesh.deploy.target import DeployFailed

    async def story(house: HttpHouse) -> None:
        address = await house.deploy(1)
        house.write(2, more='\n\n@web.get("/bad/{n}")\ndef bad(n: object()): ...\n')
        with pytest.raises(DeployFailed):
            await house.deployments.deploy(house.wanted(address=address.endpoint_url))
        async with client(address) as http:
            assert (await http.get("/hello/you")).json()["version"] == 1

    play_http(story)


def play_http(story) -> None:  # type: ignore[no-untyped-def]
    play(story, house=HttpHouse)
