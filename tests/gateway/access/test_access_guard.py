"""The gate before an ASGI application."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from access_fixtures import Door

from flashmesh.gateway.access.gate import COOKIE
from flashmesh.gateway.access.guard import PRINCIPAL, guard
from flashmesh.gateway.access.register import Register
from flashmesh.gateway.access.scopes import required_scope
from flashmesh.gateway.api import asgi
from flashmesh.wire.tokens import read_claims

HOST = (b"host", b"localhost:7470")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path, allow_origin=("http://web:3000",))


def through(
    door: Door, headers: list[tuple[bytes, bytes]], **scope: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a client of a guarded application is sent, and the scope that reached the application (empty: none did)."""
    sent: list[dict[str, Any]] = []
    seen: dict[str, Any] = {}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1"), (b"vary", b"A")]})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await send({"type": "http.response.body", "body": b"two"})

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    full = {"type": "http", "method": "GET", "path": "/docs", "query_string": b"", "headers": headers, **scope}
    asyncio.run(guard(application, door.gate)(full, receive, send))
    return sent, seen


def test_the_application_learns_who_calls(door: Door) -> None:
    _, seen = through(door, [HOST])
    assert seen[PRINCIPAL] == ""
    bearer = (b"authorization", b"Bearer " + door.issue("call", "shop").encode())
    _, seen = through(door, [HOST, bearer], state={"kept": 1})
    assert (seen[PRINCIPAL], seen["state"]) == ("shop", {"kept": 1})


def test_the_application_looks_for_the_caller_where_the_guard_leaves_it() -> None:
    assert asgi.PRINCIPAL == PRINCIPAL


@pytest.mark.parametrize("media", [b"text/event-stream; charset=utf-8", b"application/octet-stream"])
@pytest.mark.parametrize("ends", ["revoked", "expired"])
def test_an_answer_that_lasts_ends_with_its_token(door: Door, media: bytes, ends: str) -> None:
    """A stream of events says why. What the application sends afterwards goes nowhere."""
    token = door.issue("call", "shop", lifetime_s=3600)
    Register(door.folder, clock=door.clock).add(read_claims(token.encode()))
    sent: list[dict[str, Any]] = []
    ended = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media)]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        if ends == "revoked":
            Register(door.folder, clock=door.clock).revoke("shop")
        door.clock.now += 1 if ends == "revoked" else 7200
        await ended.wait()
        await send({"type": "http.response.body", "body": b"two", "more_body": True})

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            ended.set()

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [HOST, (b"authorization", b"Bearer " + token.encode())]
    scope = {"type": "http", "method": "GET", "path": "/v1/logs", "query_string": b"", "headers": headers}
    asyncio.run(guard(application, door.gate)(scope, receive, send))
    assert [message.get("body") for message in sent[1:2]] == [b"one"]
    assert len(sent) == 3
    assert (b"UNAUTHORIZED" in sent[2]["body"]) is (b"event-stream" in media)


def test_an_answer_of_many_parts_is_whole_as_long_as_its_token_counts(door: Door) -> None:
    bearer = (b"authorization", b"Bearer " + door.issue("call", "shop").encode())
    sent, _ = through(door, [HOST, bearer])
    assert [message.get("body") for message in sent] == [None, b"one", b"two"]


def test_a_refusal_does_not_reach_the_application(door: Door) -> None:
    sent, seen = through(door, [HOST], method="POST", path="/v1/functions")
    assert seen == {}
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 401
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()


def test_a_stream_for_an_allowed_origin_passes_in_pieces_with_cors_headers(door: Door) -> None:
    sent, _ = through(door, [HOST, (b"origin", b"http://web:3000")])
    assert [message.get("body") for message in sent[1:]] == [b"one", b"two"]
    assert (b"access-control-allow-origin", b"http://web:3000") in sent[0]["headers"]
    assert {(b"x-app", b"1"), (b"vary", b"A"), (b"vary", b"Origin")} <= set(sent[0]["headers"])


def test_answers_to_programs_bear_no_cors_headers(door: Door) -> None:
    sent, _ = through(door, [HOST])
    assert sent[0]["headers"] == [(b"x-app", b"1"), (b"vary", b"A")]


@pytest.mark.parametrize(
    "headers",
    [
        [HOST, (b"host", b"evil.example")],
        [(b"host", b"evil.example"), HOST],
        [HOST, (b"origin", b"http://localhost:7470"), (b"origin", b"http://evil.example")],
        [HOST, (b"origin", b"http://evil.example"), (b"origin", b"http://localhost:7470")],
    ],
)
def test_a_second_host_or_origin_does_not_hide_behind_the_first(door: Door, headers: list[tuple[bytes, bytes]]) -> None:
    through(door, [HOST])
    sent, seen = through(door, headers, method="POST", path="/v2/hello/run")
    assert sent[0]["status"] == 403
    assert seen == {}


def test_a_websocket_of_a_foreign_page_is_closed_and_one_of_ours_is_not(door: Door) -> None:
    foreign = [HOST, (b"origin", b"http://evil.example")]
    sent, seen = through(door, foreign, type="websocket", path="/lb/chat/ws")
    assert (sent, seen) == ([{"type": "websocket.close", "code": 1008}], {})
    _, seen = through(door, [HOST, (b"origin", b"http://localhost:7470")], type="websocket", path="/lb/chat/ws")
    assert seen[PRINCIPAL] == ""


def test_beyond_the_loopback_a_websocket_needs_a_token_and_a_cookie_only_counts_for_our_page(tmp_path: Path) -> None:
    door = Door(tmp_path, host="0.0.0.0")
    name = (b"host", b"10.0.0.5:7470")
    cookie = (b"cookie", f"{COOKIE}={door.issue('call')}".encode())
    ours = (b"origin", b"https://10.0.0.5:7470")
    for headers, let_in in (([name], False), ([name, cookie], False), ([name, cookie, ours], True)):
        _, seen = through(door, headers, type="websocket", path="/lb/chat/ws")
        assert bool(seen) is let_in


def test_the_decoded_path_is_the_one_that_is_judged(door: Door) -> None:
    """The application's router sees `%2F` as a slash, so the gate must."""
    sent, seen = through(door, [HOST], method="POST", path="/v1/functions", raw_path=b"/v2/x/run")
    assert (sent[0]["status"], seen) == (401, {})
    assert required_scope("POST", "/v1/functions/a%2Fb:invoke") == "call"


def test_starting_and_stopping_is_nobodys_request(door: Door) -> None:
    _, seen = through(door, [], type="lifespan")
    assert seen["type"] == "lifespan"


def test_signing_in_over_tls_marks_the_cookie(tmp_path: Path) -> None:
    door = Door(tmp_path, host="0.0.0.0")
    query = b"token=" + door.issue("call").encode()
    headers = [(b"host", b"h"), (b"accept", b"text/html")]
    sent, _ = through(door, headers, query_string=query, scheme="https")
    assert dict(sent[0]["headers"])[b"set-cookie"].endswith(b"; Secure")
