"""Key, admin token and the list of tokens: files that several processes share."""

import subprocess
import sys
from pathlib import Path

import pytest
from access_fixtures import NOON, Clock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmesh.gateway.access.keys import KeyUnusable, TokenKeys, admin_token
from flashmesh.gateway.access.register import (
    Register,
    RegisterDamaged,
    TokenNameUnusable,
    TokenNotFound,
    check_name,
)
from flashmesh.gateway.access.tokens import Tokens
from flashmesh.wire.tokens import TokenVerifier

_MAKE_BOTH = """
import sys
from pathlib import Path
from flashmesh.gateway.access.keys import TokenKeys, admin_token
from flashmesh.wire.tokens import new_seed
new_seed()  # the slow import is done
print("ready", flush=True)
sys.stdin.readline()
folder = Path(sys.argv[1])
keys = TokenKeys.open(folder)
print(keys.id, admin_token(folder, keys)[0])
"""
_NOTE_MANY = """
import sys
from pathlib import Path
from flashmesh.gateway.access.keys import TokenKeys
from flashmesh.gateway.access.register import Register
folder, who = Path(sys.argv[1]), sys.argv[2]
keys, register = TokenKeys.open(folder), Register(folder)
print("ready", flush=True)
sys.stdin.readline()
for index in range(10):
    register.add(keys.issue(f"{who}{index}", "call")[1])
"""


def at_once(program: str, folder: Path, count: int) -> list[str]:
    """What `count` processes print that are let go at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), f"p{number}-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return said


def test_of_two_processes_that_make_the_key_at_once_exactly_one_does(tmp_path: Path) -> None:
    for round_number in range(3):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        said = at_once(_MAKE_BOTH, folder, 4)
        assert len(set(said)) == 1
        keys = TokenKeys.open(folder)
        assert said[0].split() == [keys.id, admin_token(folder, keys)[0]]
        assert sorted(path.name for path in folder.iterdir()) == ["signing.key", "token"]


def test_commands_that_note_tokens_at_once_lose_none(tmp_path: Path) -> None:
    TokenKeys.open(tmp_path)
    at_once(_NOTE_MANY, tmp_path, 3)
    names = {token.name for token in Register(tmp_path).read()}
    assert names == {f"p{who}-{index}" for who in range(3) for index in range(10)}


def test_the_admin_token_is_signed_by_the_key_beside_it(tmp_path: Path) -> None:
    keys = TokenKeys.open(tmp_path)
    text, claims = admin_token(tmp_path, keys)
    assert TokenVerifier(keys.public, "server").verify(text.encode()) == claims
    assert (claims.scope, claims.sub, claims.exp) == ("admin", "admin", 0)


def test_a_new_key_gets_a_new_admin_token(tmp_path: Path) -> None:
    old, _ = admin_token(tmp_path, TokenKeys.open(tmp_path))
    (tmp_path / "signing.key").unlink()
    keys = TokenKeys.open(tmp_path)
    new, claims = admin_token(tmp_path, keys)
    assert new != old
    assert claims.iss == keys.id


def test_a_damaged_token_file_is_replaced(tmp_path: Path) -> None:
    keys = TokenKeys.open(tmp_path)
    admin_token(tmp_path, keys)
    (tmp_path / "token").write_text("x.y.z")
    assert admin_token(tmp_path, keys)[1].iss == keys.id


def test_a_revoked_admin_token_that_is_still_there_is_replaced_at_the_start(tmp_path: Path) -> None:
    keys = TokenKeys.open(tmp_path)
    old, claims = admin_token(tmp_path, keys)
    Register(tmp_path).revoke_claims(claims)
    assert Tokens(tmp_path).admin_token != old


@pytest.mark.parametrize("name", ["signing.key", "token"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_secret_that_others_may_read_is_not_used(tmp_path: Path, name: str, mode: int) -> None:
    Tokens(tmp_path)
    (tmp_path / name).chmod(mode)
    with pytest.raises(KeyUnusable, match="chmod 600"):
        Tokens(tmp_path)


@pytest.mark.parametrize("text", ["", "AAAA\nBBBB\n", "not base64\n", "A"])
def test_a_damaged_key_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signing.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyUnusable, match="Remove it"):
        TokenKeys.open(tmp_path)


def test_secrets_are_in_no_representation(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    seed = (tmp_path / "signing.key").read_text().split()[0]
    for shown in (repr(tokens), repr(tokens.keys), str(tokens.keys)):
        assert tokens.admin_token not in shown
        assert seed not in shown


# The list


def test_a_name_is_free_again_once_its_token_is_revoked_or_expired(tmp_path: Path) -> None:
    clock = Clock()
    keys, register = TokenKeys.open(tmp_path, clock=clock), Register(tmp_path, clock=clock)
    register.add(keys.issue("ci", "call", lifetime_s=60)[1])
    with pytest.raises(TokenNameUnusable, match="flash token revoke ci"):
        register.add(keys.issue("ci", "call")[1])
    clock.now = NOON + 60
    register.add(keys.issue("ci", "call")[1])
    register.revoke("ci")
    register.add(keys.issue("ci", "call")[1])
    assert [token.state(clock()) for token in register.read()] == ["expired", "revoked", "active"]


def test_revoking_by_name_means_the_live_one(tmp_path: Path) -> None:
    keys, register = TokenKeys.open(tmp_path), Register(tmp_path)
    first = register.add(keys.issue("ci", "call")[1])
    register.revoke("ci")
    second = register.add(keys.issue("ci", "admin")[1])
    assert register.revoke("ci").id == second.id
    assert register.revoked() == {first.id, second.id}


def test_revoking_twice_keeps_the_first_moment(tmp_path: Path) -> None:
    clock = Clock()
    keys, register = TokenKeys.open(tmp_path), Register(tmp_path, clock=clock)
    issued = register.add(keys.issue("ci", "call")[1])
    first = register.revoke(issued.id)
    clock.now += 100
    assert register.revoke(issued.id) == first


def test_an_unknown_token_is_named_with_the_nearest(tmp_path: Path) -> None:
    keys, register = TokenKeys.open(tmp_path), Register(tmp_path)
    register.add(keys.issue("prometheus", "metrics")[1])
    with pytest.raises(TokenNotFound, match="did you mean 'prometheus'"):
        register.revoke("promtheus")


def test_expired_tokens_are_forgotten_a_month_later_and_revoked_ones_that_never_expire_are_not(tmp_path: Path) -> None:
    clock = Clock()
    keys, register = TokenKeys.open(tmp_path, clock=clock), Register(tmp_path, clock=clock)
    register.add(keys.issue("old", "call", lifetime_s=60)[1])
    register.add(keys.issue("forever", "call")[1])
    register.revoke("forever")
    clock.now += 31 * 86400
    register.add(keys.issue("new", "call")[1])
    assert [token.name for token in register.read()] == ["forever", "new"]


def test_a_list_that_cannot_be_read_stops_the_server_from_starting(tmp_path: Path) -> None:
    Tokens(tmp_path)
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(RegisterDamaged, match="which tokens are revoked"):
        Tokens(tmp_path)


@pytest.mark.parametrize("name", ["", "a b", "-x", "a" * 64, "né", "a\n", "admin"])
def test_names_that_would_not_read_well_in_a_log_are_refused(name: str) -> None:
    with pytest.raises(TokenNameUnusable):
        check_name(name)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["add", "revoke"]), st.sampled_from("abc")), max_size=12))
def test_the_list_agrees_with_a_simple_model(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    (tmp_path / "tokens.json").unlink(missing_ok=True)
    keys, register = TokenKeys.open(tmp_path), Register(tmp_path)
    live: set[str] = set()
    known: set[str] = set()
    for verb, name in steps:
        if verb == "add" and name in live:
            with pytest.raises(TokenNameUnusable):
                register.add(keys.issue(name, "call")[1])
        elif verb == "add":
            register.add(keys.issue(name, "call")[1])
            live.add(name)
            known.add(name)
        elif name in known:
            register.revoke(name)
            live.discard(name)
        else:
            with pytest.raises(TokenNotFound):
                register.revoke(name)
    assert {token.name for token in register.read() if not token.revoked} == live
