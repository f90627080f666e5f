"""`flash token`: on this machine's files, with or without a server."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flashmesh.cli.commands import flash
from flashmesh.gateway.access.gate import AccessGate
from flashmesh.gateway.access.pages import PageRules
from flashmesh.gateway.access.tokens import Tokens
from flashmesh.kit.machine import host_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def token(*arguments: str) -> Result:
    return CliRunner().invoke(flash, ["token", *arguments])


def may(home: Path, text: str, line: str = "POST /v1/functions/hello:invoke") -> bool:
    """Whether a server of this machine that listens everywhere lets it in."""
    gate = AccessGate(PageRules.make(host="0.0.0.0"), Tokens(host_folder(home)))
    method, _, path = line.partition(" ")
    headers = {b"host": b"box.lan", b"authorization": f"Bearer {text}".encode()}
    return isinstance(gate.check(method.encode(), path.encode(), b"", headers), str)


def test_a_new_token_is_the_only_thing_on_stdout_and_opens_the_server(home: Path) -> None:
    done = token("create", "ci")
    assert done.exit_code == 0
    text = done.stdout.strip()
    assert text.count(".") == 2 and " " not in text
    assert "not shown again" in done.stderr
    assert may(home, text)
    assert not may(home, text, "POST /v1/functions")


@pytest.mark.parametrize(
    ("scope", "line"), [("admin", "POST /v1/functions"), ("metrics", "GET /metrics"), ("call", "GET /docs")]
)
def test_the_scope_says_what_it_may(home: Path, scope: str, line: str) -> None:
    assert may(home, token("create", "t", "--scope", scope).stdout.strip(), line)


def test_workers_tokens_are_not_made_by_hand(home: Path) -> None:
    assert token("create", "t", "--scope", "link").exit_code == 2


def test_json_tells_all_of_a_token(home: Path) -> None:
    made = json.loads(token("create", "t", "--app", "shop", "--env", "staging", "--expires", "12h", "--json").stdout)
    assert may(home, made["token"])
    assert (made["name"], made["scope"], made["app"], made["environment"]) == ("t", "call", "shop", "staging")
    assert made["state"] == "active"
    assert made["expires"] > made["issued"]


def test_the_list_has_this_machines_own_token_first_and_no_texts(home: Path) -> None:
    text = token("create", "ci", "--expires", "never").stdout.strip()
    shown = token("list")
    names = [line.split()[0] for line in shown.stdout.splitlines()]
    assert names == ["Name", "admin", "ci"]
    assert text not in shown.stdout
    listed = json.loads(token("list", "--json").stdout)
    assert [(one["name"], one["state"], one["expires"]) for one in listed] == [
        ("admin", "active", None),
        ("ci", "active", None),
    ]


def test_a_revoked_token_opens_nothing_and_is_listed_so(home: Path) -> None:
    text = token("create", "ci").stdout.strip()
    assert token("revoke", "ci").exit_code == 0
    assert not may(home, text)
    assert json.loads(token("list", "--json").stdout)[1]["state"] == "revoked"


def test_a_token_is_revoked_by_its_id_too(home: Path) -> None:
    made = json.loads(token("create", "ci", "--json").stdout)
    assert json.loads(token("revoke", made["id"], "--json").stdout)["revoked"]
    assert not may(home, made["token"])


def test_this_machines_own_token_is_replaced_when_it_is_revoked(home: Path) -> None:
    token("list")
    file = host_folder(home) / "token"
    old = file.read_text().strip()
    assert token("revoke", "admin").exit_code == 0
    new = file.read_text().strip()
    assert not may(home, old, "POST /v1/functions")
    assert may(home, new, "POST /v1/functions")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("revoke", "nobody"), 1, "flash token list"),
        (("create", "a b"), 1, "letters"),
        (("create", "admin"), 1, "Choose another name"),
        (("create", "x", "--expires", "3y"), 2, "90d"),
        (("create", "x", "--expires", "0d"), 2, "90d"),
        (("create",), 2, "NAME"),
    ],
)
def test_mistakes_are_answered_with_the_next_step(home: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = token(*arguments)
    assert (done.exit_code, said in done.stderr) == (code, True)


def test_a_name_that_is_taken_is_refused(home: Path) -> None:
    token("create", "ci")
    done = token("create", "ci")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "flash token revoke ci" in done.stderr


@pytest.mark.parametrize("command", [["token"], ["token", "create"], ["token", "list"], ["token", "revoke"], ["login"]])
def test_the_help_ends_in_examples(command: list[str]) -> None:
    shown = CliRunner().invoke(flash, [*command, "--help"]).output
    assert shown.rstrip().splitlines()[-1].strip().startswith("flash ")
