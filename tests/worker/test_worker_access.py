"""Who is let in at an endpoint's TCP address."""

import json
from pathlib import Path

import pytest

from flashmesh.gateway.access.keys import TokenKeys
from flashmesh.gateway.access.register import Register
from flashmesh.worker.face.access import Access

LOCAL = {"host": "127.0.0.1:4000"}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys(tmp_path: Path) -> TokenKeys:
    return TokenKeys.open(tmp_path, clock=Clock())


def access(keys: TokenKeys, **more: object) -> Access:
    settings: dict[str, object] = {"app": "shop", "environment": "production", "clock": Clock(), **more}
    return Access(public_key=keys.public, **settings)  # type: ignore[arg-type]


def status(
    who: Access, headers: dict[str, str], *, client: str = "127.0.0.1", path: str = "/run_sync", method: str = "POST"
) -> int:
    """200: let in."""
    refusal = who.refuse(method=method, path=path, headers=headers, client=client)
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "127.0.0.1:4000"}, 200),
        ({"host": "localhost:4000"}, 200),
        ({"host": "m.localhost:4000"}, 200),
        ({"host": "[::1]:4000"}, 200),
        ({}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:4000"}, 403),
        ({**LOCAL, "origin": "https://evil.example"}, 403),
        ({**LOCAL, "origin": "null"}, 403),
        ({**LOCAL, "origin": "http://127.0.0.1:4001"}, 403),
        ({**LOCAL, "origin": "http://127.0.0.1:4000"}, 200),
        ({**LOCAL, "sec-fetch-site": "cross-site"}, 403),
        ({**LOCAL, "sec-fetch-site": "same-site"}, 403),
        ({**LOCAL, "sec-fetch-site": "none"}, 200),
        ({**LOCAL, "authorization": "Bearer sk-somebody-elses"}, 200),
    ],
)
def test_a_program_of_this_machine_needs_no_token_and_a_foreign_page_is_refused(
    keys: TokenKeys, headers: dict[str, str], expected: int
) -> None:
    assert status(access(keys), headers) == expected


def test_a_link_that_was_followed_may_read(keys: TokenKeys) -> None:
    headers = {**LOCAL, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert status(access(keys), headers, method="GET") == 200
    assert status(access(keys), headers, method="POST") == 403


def test_other_machines_need_a_token(keys: TokenKeys) -> None:
    who = access(keys)
    assert status(who, {"host": "10.0.0.5:4000"}, client="10.0.0.9") == 401
    assert status(who, {"host": "127.0.0.1:4000"}, client="10.0.0.9") == 401
    assert status(who, {"host": "10.0.0.5:4000", "authorization": "Bearer nonsense"}, client="10.0.0.9") == 401
    token = keys.issue("w", "peer", app="shop", environment="production")[0]
    assert status(who, {"host": "10.0.0.5:4000", "authorization": f"Bearer {token}"}, client="10.0.0.9") == 200


@pytest.mark.parametrize(
    ("scope", "place", "expected"),
    [
        ("peer", {"app": "shop", "environment": "production"}, 200),
        ("peer", {"app": "shop", "environment": "staging"}, 403),
        ("peer", {"app": "other", "environment": "production"}, 403),
        ("call", {"app": "shop"}, 200),
        ("call", {}, 200),
        ("admin", {}, 200),
        ("metrics", {}, 403),
        ("link", {"endpoint": "m", "build": "b"}, 403),
    ],
)
def test_a_token_counts_for_its_scope_and_place(
    keys: TokenKeys, scope: str, place: dict[str, str], expected: int
) -> None:
    token = keys.issue("t", scope, **place)[0]  # type: ignore[arg-type]
    assert status(access(keys), {"authorization": f"Bearer {token}"}) == expected


def test_a_token_of_another_key_or_one_that_was_changed_is_refused(keys: TokenKeys, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    foreign = TokenKeys.open(tmp_path / "other", clock=Clock()).issue("t", "admin")[0]
    own = keys.issue("t", "admin")[0]
    for token in (foreign, own[:-8] + "AAAAAAAA"):
        assert status(access(keys), {**LOCAL, "authorization": f"Bearer {token}"}) == 401


def test_a_token_ends_when_it_expires_or_is_revoked(keys: TokenKeys, tmp_path: Path) -> None:
    register, clock = Register(tmp_path, clock=Clock()), Clock()
    who = access(keys, revocations=str(register.path), clock=clock)
    brief, lasting = keys.issue("brief", "peer", lifetime_s=60)[0], keys.issue("lasting", "peer")

    def shown(token: str) -> int:
        return status(who, {"authorization": f"Bearer {token}"})

    assert (shown(brief), shown(lasting[0])) == (200, 200)
    clock.now += 3600
    assert (shown(brief), shown(lasting[0])) == (401, 200)
    register.revoke_claims(lasting[1])
    assert shown(lasting[0]) == 401
    register.path.write_text(json.dumps({"tokens": []}))
    assert shown(lasting[0]) == 401, "what was revoked once stays so"


def test_ping_is_open_and_a_public_endpoint_is_everybodys(keys: TokenKeys) -> None:
    foreign = {"host": "evil.example", "origin": "https://evil.example"}
    assert status(access(keys), foreign, client="10.0.0.9", path="/ping", method="GET") == 200
    assert status(access(keys, public=True), foreign, client="10.0.0.9") == 200
    assert status(access(keys), foreign, client="10.0.0.9") == 401
    assert status(access(keys), foreign) == 403, "a name that was pointed at the loopback"
