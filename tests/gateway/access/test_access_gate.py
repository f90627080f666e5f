"""Who is let in, and what the others are told."""

import json
import os
from pathlib import Path

import pytest
from access_fixtures import NOON, Door, refused

from flashmesh.gateway.access.gate import COOKIE, TurnedAway, answer
from flashmesh.gateway.access.keys import renew_admin_token
from flashmesh.gateway.access.pages import SignIn
from flashmesh.gateway.access.place import Place
from flashmesh.gateway.access.register import Register
from flashmesh.gateway.http import Answer
from flashmesh.wire.tokens import LEEWAY_S, read_claims

INVOKE = "POST /v1/functions/hello:invoke"
REGISTER = "POST /v1/functions"
PAGE = {"accept": "text/html,*/*"}


@pytest.fixture
def here(tmp_path: Path) -> Door:
    """A server that listens on the loopback."""
    return Door(tmp_path)


@pytest.fixture
def wide(tmp_path: Path) -> Door:
    """A server that listens beyond its machine."""
    return Door(tmp_path, host="0.0.0.0")


# Without a token, on the loopback


@pytest.mark.parametrize(
    "line",
    [
        INVOKE,
        "POST /v1/functions/hello:enqueue",
        "POST /v2/hello/run",
        "GET /v1/executions",
        "GET /docs",
        "GET /metrics",
    ],
)
def test_without_a_token_the_loopback_serves_invoke_reads_and_docs(here: Door, line: str) -> None:
    assert here.ask(line) == ""


@pytest.mark.parametrize(
    "line",
    [
        REGISTER,
        "PATCH /v1/functions/a",
        "DELETE /v1/functions/a",
        "PUT /v1/functions/a/replicas",
        "PUT /v1/builds/a/artifact",
    ],
)
def test_what_brings_code_needs_the_admin_token_on_the_loopback_too(here: Door, line: str) -> None:
    status, body = refused(here.ask(line))
    assert status == 401
    assert "Authorization: Bearer" in body and "flash token create NAME --scope admin" in body
    assert here.ask(line, token=here.tokens.admin_token) == "admin"


def test_what_brings_code_is_found_behind_percent_signs(here: Door) -> None:
    assert refused(here.ask("POST /v1/%66unctions"))[0] == 401
    assert refused(here.ask("DELETE /v1/functions/%61"))[0] == 401


def test_names_behind_percent_signs_may_be_called(here: Door) -> None:
    assert here.ask("POST /v1/functions/h%C3%A9llo%3Ainvoke") == ""


def test_sources_are_no_reading_for_everybody(here: Door) -> None:
    assert refused(here.ask("GET /v1/builds/abc/artifact"))[0] == 401
    assert refused(here.ask("GET /v1/b%75ilds/abc/artifact"))[0] == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_open_to_all(wide: Door, path: str) -> None:
    assert wide.ask(f"GET {path}", host="evil.example", origin="http://evil.example") == ""


@pytest.mark.parametrize(
    "host",
    ["localhost:7470", "localhost.", "LOCALHOST:7470", "127.9.9.9", "[::1]:7470", "[::1]", "gpu.localhost:7470", ""],
)
def test_a_loopback_name_needs_no_token(here: Door, host: str) -> None:
    assert here.ask(INVOKE, host=host) == ""


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:7470",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1, evil.example",
        "127.0.0.1:7470, evil.example",
        "localhost:evil.example",
        "[::1].evil.example",
        "[::1]:7470, evil.example",
        "[::2]:7470",
        "localhost:7470:1",
        "0.0.0.0:7470",
    ],
)
def test_a_rebound_dns_name_is_refused_and_the_answer_names_the_option(here: Door, host: str) -> None:
    here.ask(INVOKE)  # a good one before it does not help
    status, body = refused(here.ask(INVOKE, host=host))
    assert status == 403
    assert "--allow-host" in json.loads(body)["message"]
    assert json.loads(body)["error"] == "FORBIDDEN"


def test_an_allowed_host_is_served(tmp_path: Path) -> None:
    door = Door(tmp_path, allow_host=("Box.lan",))
    assert door.ask(INVOKE, host="box.lan:7470") == ""
    assert refused(door.ask(INVOKE, host="other.lan"))[0] == 403


def test_a_good_token_makes_up_for_an_unknown_host_and_for_that_request_only(here: Door) -> None:
    token = here.issue("call")
    headers = {b"host": b"tunnel.example", b"authorization": b"Bearer " + token.encode()}
    assert here.gate.check(b"GET", b"/docs", b"", headers) == "ci"
    assert here.ask(INVOKE, token=token, host="tunnel.example") == "ci"
    assert refused(here.ask(INVOKE, host="tunnel.example"))[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:7471"])
def test_a_foreign_page_may_not_call_and_is_told_the_option(here: Door, origin: str) -> None:
    status, body = refused(here.ask(INVOKE, origin=origin))
    assert status == 403
    assert f"--allow-origin {origin}" in body


def test_our_own_page_may_call(here: Door) -> None:
    assert here.ask(INVOKE, origin="http://127.0.0.1:7470", sec_fetch_site="same-origin") == ""


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_cross_site_request_without_an_origin_is_refused(here: Door, site: str) -> None:
    here.ask(INVOKE)
    status, body = refused(here.ask("GET /v1/executions", sec_fetch_site=site, sec_fetch_mode="no-cors"))
    assert status == 403
    assert "--allow-origin" in body


def test_a_link_on_another_page_may_open_the_docs_and_post_nothing(here: Door) -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert here.ask("GET /docs", **link) == ""
    assert refused(here.ask(INVOKE, **link))[0] == 403


def test_a_page_of_an_allowed_origin_is_served_and_its_preflight_answered(tmp_path: Path) -> None:
    door = Door(tmp_path, allow_origin=("http://web:3000",))
    assert door.ask(INVOKE, origin="http://web:3000") == ""
    found = door.ask(
        "OPTIONS /v1/functions/hello:invoke", origin="http://web:3000", access_control_request_method="POST"
    )
    assert isinstance(found, Answer)
    assert found.status == 204
    assert (b"access-control-allow-origin", b"http://web:3000") in found.headers


def test_a_page_of_an_allowed_origin_may_read_why_it_was_refused(tmp_path: Path) -> None:
    door = Door(tmp_path, allow_origin=("http://web:3000",))
    found = door.ask(REGISTER, origin="http://web:3000")
    assert isinstance(found, Answer)
    assert found.status == 401
    assert (b"access-control-allow-origin", b"http://web:3000") in found.headers


def test_a_key_of_another_service_does_not_count_on_the_loopback(here: Door) -> None:
    assert here.ask("POST /v2/hello/run", token="rpa_ABCDEF") == ""
    assert here.ask("POST /v2/hello/run", authorization="Basic dXNlcjpwdw==") == ""
    assert refused(here.ask(REGISTER, token="rpa_ABCDEF"))[0] == 401


# With a token


def test_beyond_the_loopback_every_request_needs_a_token(wide: Door) -> None:
    for line in (INVOKE, "GET /docs", "GET /metrics", "GET /", REGISTER):
        status, body = refused(wide.ask(line))
        assert status == 401
        assert "Authorization: Bearer" in body
    assert refused(wide.ask(INVOKE, host="localhost:7470"))[0] == 401


def test_a_refusal_for_want_of_a_token_says_which_kind(wide: Door) -> None:
    found = wide.ask(INVOKE)
    assert isinstance(found, Answer)
    assert (b"www-authenticate", b"Bearer") in found.headers
    assert json.loads(found.body)["error"] == "UNAUTHORIZED"


@pytest.mark.parametrize("token", ["rpa_ABCDEF", "x", "a.b.c", "é"])
def test_what_is_no_token_of_ours_is_refused_beyond_the_loopback(wide: Door, token: str) -> None:
    status, body = refused(wide.ask(INVOKE, token=token))
    assert status == 401
    assert "not one of this server" in body


def test_a_call_token_calls_and_reads_and_is_named(wide: Door) -> None:
    token = wide.issue("call", "shop-web")
    for line in (INVOKE, "POST /v2/hello/runsync", "GET /v1/executions", "GET /docs", "DELETE /v1/executions/1"):
        assert wide.ask(line, token=token) == "shop-web"


def test_a_call_token_brings_no_code_and_the_answer_names_the_command(wide: Door) -> None:
    status, body = refused(wide.ask(REGISTER, token=wide.issue("call")))
    assert status == 403
    assert "--scope admin" in body and "'ci'" in body


def test_a_metrics_token_reads_metrics_only(wide: Door) -> None:
    token = wide.issue("metrics", "prometheus")
    assert wide.ask("GET /metrics", token=token) == "prometheus"
    for line in (INVOKE, "GET /v1/functions", "GET /docs", REGISTER):
        assert refused(wide.ask(line, token=token))[0] == 403
    assert refused(wide.ask("GET /metrics", token=wide.issue("call")))[0] == 403


def test_a_token_is_judged_by_what_it_says_on_the_loopback_too(here: Door) -> None:
    assert refused(here.ask(INVOKE, token=here.issue("metrics")))[0] == 403


def test_a_workers_token_calls_and_reads_the_manifest_and_nothing_else(wide: Door) -> None:
    token = wide.issue("peer", "peer:shop", app="shop", environment="production")
    for line in (INVOKE, "POST /v2/hello/run", "GET /v2/hello/status/1", "GET /manifest", "POST /lb/web/order"):
        assert wide.ask(line, token=token) == "peer:shop"
    for line in ("GET /v1/executions", "GET /v1/logs", "GET /metrics", "GET /v1/builds/1/artifact", REGISTER):
        assert refused(wide.ask(line, token=token))[0] == 403


def test_a_links_token_opens_the_artifact_and_no_call(wide: Door) -> None:
    token = wide.issue("link", "link:web", endpoint="web", build="abc")
    assert wide.ask("GET /v1/builds/abc/artifact", token=token) == "link:web"
    assert refused(wide.ask(INVOKE, token=token))[0] == 403


def test_a_token_of_one_app_is_refused_for_another(wide: Door) -> None:
    token = wide.issue("call", app="shop", environment="production")
    assert wide.ask(INVOKE, token=token) == "ci"
    assert wide.ask(INVOKE, token=token, x_flash_app="shop") == "ci"
    status, body = refused(wide.ask(INVOKE, token=token, x_flash_app="bank"))
    assert status == 403
    assert "'shop'" in body and "--app bank" in body
    assert refused(wide.ask(f"{INVOKE}?env=staging", token=token))[0] == 403


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({}, 200),
        ({"app": "shop"}, 200),
        ({"app": "shop", "environment": "production"}, 200),
        ({"app": "bank"}, 404),
        ({"app": "shop", "environment": "staging"}, 404),
        ({"environment": "staging"}, 404),
    ],
)
def test_names_without_an_app_are_those_of_the_tokens_app(tmp_path: Path, claims: dict[str, str], status: int) -> None:
    """A token for another app finds nothing where this one is served, as if it had named its own."""
    door = Door(tmp_path, host="0.0.0.0", place=Place("shop"))
    found = door.ask(INVOKE, token=door.issue("call", **claims))
    if status == 200:
        assert found == "ci"
    else:
        refusal = refused(found)
        assert refusal[0] == status
        assert "is not served here" in refusal[1] and "'ci'" in refusal[1]


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize(
    ("query", "headers", "served"),
    [
        ("", {"x_flash_app": "shop"}, True),
        ("", {"x_flash_app": "shop", "x_flash_environment": "production"}, True),
        ("?app=shop&env=production", {}, True),
        ("", {"x_flash_app": "bank"}, False),
        ("", {"x_flash_environment": "staging"}, False),
        ("?app=bank", {}, False),
        ("?%61pp=bank", {}, False),
        ("?wait=1000", {}, True),
    ],
)
def test_a_request_that_names_another_app_is_not_served_by_this_one(
    tmp_path: Path, query: str, headers: dict[str, str], served: bool, token: bool
) -> None:
    door = Door(tmp_path, place=Place("shop"))
    found = door.ask(INVOKE + query, token=door.issue("call") if token else None, **headers)
    if served:
        assert found == ("ci" if token else "")
    else:
        assert refused(found)[0] == 404


def test_a_server_without_a_project_serves_no_app_by_name(tmp_path: Path) -> None:
    """What was POSTed to it belongs to none; a token for one app is not for that."""
    door = Door(tmp_path, place=Place(""))
    assert door.ask(INVOKE, token=door.issue("call")) == "ci"
    assert refused(door.ask(INVOKE, token=door.issue("call", "shop", app="shop")))[0] == 404


def test_the_caller_s_app_and_environment_can_be_asked_for(wide: Door) -> None:
    name = wide.ask(INVOKE, token=wide.issue("call", app="shop"))
    assert isinstance(name, str)
    grant = wide.gate.grant(name)
    assert grant is not None
    assert (grant.app, grant.environment, grant.scope) == ("shop", "", "call")
    assert wide.gate.grant("") is None


def test_an_expired_token_is_refused_though_it_was_good_before(wide: Door) -> None:
    token = wide.issue("call", lifetime_s=60)
    assert wide.ask(INVOKE, token=token) == "ci"
    wide.clock.now = NOON + 60 + LEEWAY_S
    status, body = refused(wide.ask(INVOKE, token=token))
    assert status == 401
    assert "expired" in body and "flash token create ci" in body


def test_an_expired_token_is_refused_on_the_loopback_too(here: Door) -> None:
    token = here.issue("call", lifetime_s=60)
    here.clock.now = NOON + 60 + LEEWAY_S
    assert refused(here.ask(INVOKE, token=token))[0] == 401


def test_a_token_is_refused_once_it_is_revoked_while_the_server_runs(wide: Door) -> None:
    text, claims = wide.tokens.keys.issue("ci", "call")
    register = Register(wide.folder, clock=wide.clock)
    register.add(claims)
    assert wide.ask(INVOKE, token=text) == "ci"
    register.revoke("ci")
    wide.notice()
    status, body = refused(wide.ask(INVOKE, token=text))
    assert status == 401
    assert "revoked" in body


def test_a_token_that_was_revoked_before_the_start_is_refused(tmp_path: Path) -> None:
    door = Door(tmp_path, host="0.0.0.0")
    text, claims = door.tokens.keys.issue("ci", "call")
    Register(tmp_path, clock=door.clock).revoke_claims(claims)
    assert refused(Door(tmp_path, host="0.0.0.0").ask(INVOKE, token=text))[0] == 401


def test_revoking_the_machines_own_token_replaces_it(wide: Door) -> None:
    old = wide.tokens.admin_token
    assert wide.ask(REGISTER, token=old) == "admin"
    Register(wide.folder, clock=wide.clock).revoke_claims(read_claims(old.encode()))
    wide.notice()
    assert refused(wide.ask(REGISTER, token=old))[0] == 401
    renew_admin_token(wide.folder, wide.tokens.keys)
    wide.notice()
    assert refused(wide.ask(REGISTER, token=old))[0] == 401
    assert wide.ask(REGISTER, token=wide.tokens.admin_token) == "admin"


def test_a_revocation_list_that_becomes_unreadable_revives_nothing(wide: Door) -> None:
    text, claims = wide.tokens.keys.issue("ci", "call")
    Register(wide.folder, clock=wide.clock).revoke_claims(claims)
    wide.notice()
    assert refused(wide.ask(INVOKE, token=text))[0] == 401
    for damage in ("{", '{"tokens": []}'):
        Register(wide.folder).path.write_text(damage)
        wide.notice()
        assert refused(wide.ask(INVOKE, token=text))[0] == 401
    Register(wide.folder).path.unlink()
    wide.notice()
    assert refused(wide.ask(INVOKE, token=text))[0] == 401


def test_a_revocation_is_noticed_after_the_clock_was_set_back(wide: Door) -> None:
    text, claims = wide.tokens.keys.issue("ci", "call")
    assert wide.ask(INVOKE, token=text) == "ci"
    wide.clock.now -= 3600
    Register(wide.folder, clock=wide.clock).revoke_claims(claims)
    assert refused(wide.ask(INVOKE, token=text))[0] == 401


def test_a_token_for_another_place_is_refused(wide: Door, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert refused(wide.ask(INVOKE, token=Door(other).issue("admin")))[0] == 401


def test_remembered_tokens_are_bounded(tmp_path: Path) -> None:
    door = Door(tmp_path, host="0.0.0.0")
    door.tokens._most_cached = 2
    tokens = [door.issue("call", f"t{index}") for index in range(4)]
    assert [door.ask(INVOKE, token=token) for token in tokens] == ["t0", "t1", "t2", "t3"]
    assert len(door.tokens._cache) == 2
    assert [door.tokens.grant(f"t{index}") is None for index in range(4)] == [True, True, False, False]


def test_no_token_is_kept_in_memory_in_its_text(tmp_path: Path) -> None:
    door = Door(tmp_path, host="0.0.0.0")
    token = door.issue("call")
    door.ask(INVOKE, token=token)
    assert token not in repr(vars(door.tokens))


# Browsers


def test_a_url_with_a_token_signs_a_browser_in_and_is_shown_without_it(wide: Door) -> None:
    token = wide.issue("call")
    found = wide.ask(f"GET /docs?x=1&token={token}", **PAGE)
    assert isinstance(found, Answer)
    assert found.status == 303
    headers = dict(found.headers)
    assert headers[b"location"] == b"/docs?x=1"
    assert headers[b"set-cookie"].startswith(COOKIE.encode() + b"=" + token.encode())
    assert b"HttpOnly" in headers[b"set-cookie"] and b"SameSite=Strict" in headers[b"set-cookie"]


def test_on_the_loopback_a_browser_may_sign_in_for_more(here: Door) -> None:
    assert here.ask("GET /docs", **PAGE) == ""
    found = here.ask(f"GET /docs?token={here.issue('admin')}", **PAGE)
    assert isinstance(found, Answer)
    assert found.status == 303
    cookie = dict(found.headers)[b"set-cookie"].decode().partition(";")[0]
    assert here.ask("GET /docs", cookie=cookie) == "ci"
    assert here.ask(REGISTER, cookie=cookie, origin="http://127.0.0.1:7470") == "ci"


def test_a_token_in_the_address_is_for_pages_only(wide: Door) -> None:
    token = wide.issue("admin")
    assert refused(wide.ask(f"GET /docs?token={token}"))[0] == 401
    assert refused(wide.ask(f"POST /v1/functions?token={token}", **PAGE))[0] == 401
    assert refused(wide.ask("GET /docs?token=wrong", **PAGE))[0] == 401


@pytest.mark.parametrize("path", ["//evil.example/x", "/%0d%0aset-cookie:%20a=b", "/\u2028"])
def test_signing_in_leads_nowhere_else(wide: Door, path: str) -> None:
    decision = wide.gate.decide(
        method="GET", path=path, query=f"token={wide.issue('admin')}", headers={b"accept": b"text/html"}
    )
    assert isinstance(decision, SignIn)
    place = dict(answer(decision, {}).headers)[b"location"]
    assert place.startswith(b"/") and not place.startswith(b"//")
    assert b"\r" not in place and b"\n" not in place


def test_over_tls_the_cookie_stays_on_tls() -> None:
    cookie = dict(answer(SignIn("/docs", token="t"), {}, secure=True).headers)[b"set-cookie"]
    assert cookie.endswith(b"; Secure")


def test_a_cookie_opens_pages_and_lets_our_own_page_act(wide: Door) -> None:
    cookie = f"a=b; {COOKIE}={wide.issue('admin')}"
    assert wide.ask("GET /docs", cookie=cookie) == "ci"
    assert wide.ask(REGISTER, cookie=cookie, origin="https://10.0.0.5:7470") == "ci"
    assert wide.ask(REGISTER, cookie=cookie, sec_fetch_site="same-origin") == "ci"


def test_a_cookie_changes_nothing_unless_our_own_page_asks(wide: Door, tmp_path: Path) -> None:
    cookie = f"{COOKIE}={wide.issue('admin')}"
    assert refused(wide.ask(REGISTER, cookie=cookie))[0] == 401
    assert refused(wide.ask(REGISTER, cookie=cookie, origin="http://10.0.0.5:3000"))[0] == 403
    assert refused(wide.ask(REGISTER, cookie=cookie, origin="null"))[0] == 403
    assert refused(wide.ask(REGISTER, cookie=cookie, sec_fetch_site="same-site"))[0] == 403
    assert refused(wide.ask(REGISTER, cookie=cookie, sec_fetch_site="none"))[0] == 401


def test_an_allowed_origin_does_not_act_by_its_visitors_cookie(tmp_path: Path) -> None:
    door = Door(tmp_path, host="0.0.0.0", allow_origin=("*",))
    token = door.issue("admin")
    assert refused(door.ask(INVOKE, cookie=f"{COOKIE}={token}", origin="http://10.0.0.5:3000"))[0] == 401
    assert door.ask(INVOKE, token=token, origin="http://10.0.0.5:3000") == "ci"


def test_a_stale_cookie_is_as_good_as_none(here: Door, wide: Door) -> None:
    assert here.ask("GET /docs", cookie=f"{COOKIE}=stale") == ""
    assert refused(wide.ask("GET /docs", cookie=f"{COOKIE}=stale"))[0] == 401


def test_a_websocket_of_another_page_is_refused(here: Door) -> None:
    found = here.gate.decide(
        method="GET",
        path="/lb/chat/ws",
        query="",
        headers={b"host": b"localhost:7470", b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"navigate"},
        websocket=True,
    )
    assert isinstance(found, TurnedAway)


# The token file


def test_this_machines_commands_are_known_without_cryptography(tmp_path: Path) -> None:
    Door(tmp_path)
    import subprocess
    import sys

    program = (
        "import sys\nfrom pathlib import Path\n"
        "from flashmesh.gateway.access.gate import AccessGate\n"
        "from flashmesh.gateway.access.pages import PageRules\n"
        "from flashmesh.gateway.access.tokens import Tokens\n"
        f"tokens = Tokens(Path({str(tmp_path)!r}))\n"
        "gate = AccessGate(PageRules.make(host='0.0.0.0'), tokens)\n"
        "shown = {b'host': b'x', b'authorization': b'Bearer ' + tokens.admin_token.encode()}\n"
        "print(gate.check(b'POST', b'/v1/functions', b'', shown), 'cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["admin", "False"]


def test_only_this_user_may_read_key_and_token(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Door(tmp_path)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "signing.key": 0o600,
        "token": 0o600,
    }
