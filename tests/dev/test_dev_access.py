import asyncio
from typing import Any

import pytest

from flashmesh.dev.server.access import AccessRules, Allowed, Guard, Preflight, Refused, SignIn, decide, is_loopback

LOCAL = AccessRules.make(host="127.0.0.1", token=None, allow_host=(), allow_origin=())
OPEN = AccessRules.make(host="0.0.0.0", token="s3cret", allow_host=(), allow_origin=())


def ask(
    rules: AccessRules = LOCAL, *, method: str = "POST", path: str = "/f/run", query: str = "", **headers: str
) -> Any:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return decide(rules, method=method, path=path, query=query, headers=named)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "app.localhost", "LOCALHOST"])
def test_loopback_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.evil.com", "127.0.0.1.evil.com", "evil.com", "0.0.0.0", "127.0.0", ""])
def test_names_that_only_look_like_the_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["localhost:8888", "127.0.0.1:8888", "[::1]:8888", "gpu.localhost:8888"])
def test_a_request_to_a_loopback_name_needs_no_token(host: str) -> None:
    assert ask(host=host) == Allowed()


def test_a_rebound_dns_name_is_refused_and_the_answer_names_the_option() -> None:
    refused = ask(host="evil.example:8888")
    assert isinstance(refused, Refused)
    assert refused.status == 403
    assert "--allow-host evil.example" in refused.message


def test_an_allowed_host_is_served() -> None:
    rules = AccessRules.make(host="127.0.0.1", token=None, allow_host=("box.lan",), allow_origin=())
    assert ask(rules, host="box.lan:8888") == Allowed()


def test_a_foreign_page_may_not_call_and_is_told_the_option() -> None:
    refused = ask(host="localhost:8888", origin="http://localhost:3000")
    assert isinstance(refused, Refused)
    assert "--allow-origin http://localhost:3000" in refused.message


def test_our_own_page_may_call() -> None:
    assert ask(host="localhost:8888", origin="http://localhost:8888") == Allowed()


def test_an_opaque_origin_is_foreign() -> None:
    assert isinstance(ask(host="localhost:8888", origin="null"), Refused)


def test_an_allowed_origin_is_served_with_its_own_name() -> None:
    rules = AccessRules.make(host="127.0.0.1", token=None, allow_host=(), allow_origin=("http://localhost:3000/",))
    assert ask(rules, host="localhost:8888", origin="http://localhost:3000") == Allowed("http://localhost:3000")


def test_a_preflight_of_an_allowed_origin_is_answered() -> None:
    rules = AccessRules.make(host="127.0.0.1", token=None, allow_host=(), allow_origin=("http://a:1",))
    found = ask(rules, method="OPTIONS", host="localhost", origin="http://a:1", access_control_request_method="POST")
    assert found == Preflight("http://a:1")


def test_cross_site_requests_without_an_origin_are_refused() -> None:
    refused = ask(method="GET", host="localhost", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")
    assert isinstance(refused, Refused)
    assert "--allow-origin" in refused.message


def test_a_link_on_another_page_may_open_the_docs() -> None:
    headers = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask(method="GET", path="/docs", host="localhost", **headers) == Allowed()
    assert isinstance(ask(method="POST", host="localhost", **headers), Refused)


@pytest.mark.parametrize("path", ["/healthz", "/ping", "/readyz"])
def test_health_is_open_to_all(path: str) -> None:
    assert ask(OPEN, path=path, host="evil.example") == Allowed()


def test_beyond_the_loopback_a_token_is_needed() -> None:
    refused = ask(OPEN, host="10.0.0.5:8888")
    assert isinstance(refused, Refused)
    assert refused.status == 401


def test_the_bearer_token_opens() -> None:
    assert ask(OPEN, host="10.0.0.5:8888", authorization="Bearer s3cret") == Allowed()
    assert isinstance(ask(OPEN, host="10.0.0.5:8888", authorization="Bearer wrong"), Refused)


def test_the_printed_url_signs_a_browser_in_and_programs_through() -> None:
    browser = ask(OPEN, method="GET", path="/docs", query="token=s3cret&x=1", host="h", accept="text/html,*/*")
    assert browser == SignIn("/docs?x=1")
    assert ask(OPEN, query="token=s3cret", host="h") == Allowed()
    assert ask(OPEN, host="h", cookie="a=b; flash_token=s3cret") == Allowed()


def test_without_a_token_nothing_is_served_beyond_the_loopback() -> None:
    rules = AccessRules.make(host="0.0.0.0", token=None, allow_host=(), allow_origin=())
    assert isinstance(ask(rules, host="localhost"), Refused)


def guarded(rules: AccessRules, headers: list[tuple[bytes, bytes]], **scope: Any) -> list[dict[str, Any]]:
    """What a client of a guarded application is sent."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    full = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": headers, **scope}
    asyncio.run(Guard(application, rules)(full, receive, send))
    return sent


def test_the_answer_to_an_allowed_origin_carries_cors_headers() -> None:
    rules = AccessRules.make(host="127.0.0.1", token=None, allow_host=(), allow_origin=("*",))
    start = guarded(rules, [(b"host", b"localhost"), (b"origin", b"http://web:1")])[0]
    assert (b"access-control-allow-origin", b"http://web:1") in start["headers"]
    assert (b"x-app", b"1") in start["headers"]


def test_signing_in_sets_a_cookie_that_scripts_cannot_read() -> None:
    headers = [(b"host", b"h"), (b"accept", b"text/html")]
    start = guarded(OPEN, headers, query_string=b"token=s3cret")[0]
    assert start["status"] == 303
    cookie = dict(start["headers"])[b"set-cookie"]
    assert b"flash_token=s3cret" in cookie
    assert b"HttpOnly" in cookie
    assert b"SameSite=Strict" in cookie


def test_a_refusal_is_json_that_says_what_to_do() -> None:
    start, body = guarded(LOCAL, [(b"host", b"evil")])
    assert start["status"] == 403
    assert b"--allow-host evil" in body["body"]


def test_a_foreign_websocket_is_closed() -> None:
    sent = guarded(LOCAL, [(b"host", b"localhost"), (b"origin", b"http://evil")], type="websocket")
    assert sent == [{"type": "websocket.close", "code": 1008}]
