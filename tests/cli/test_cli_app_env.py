"""`flash app` and `flash env` against a real server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLASH = str(Path(sys.executable).with_name("flash"))


class Here:
    """A server on this machine, and commands of its user in a directory of their own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.cwd = folder / "shop"
        self.cwd.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLASH_", "RUNPOD_"))}
        self.env = {**kept, "FLASH_HOME": str(self.home), "TZ": "UTC"}
        self.process = subprocess.Popen(
            [FLASH, "server", "--port", "0"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while not list(self.home.glob("hosts/*/server/server.json")):
            assert self.process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.02)

    def flash(self, *arguments: str, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
        env = {**self.env, **more.pop("env", {})}
        ended = subprocess.run(
            [FLASH, *arguments],
            env=env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            **more,
        )
        assert ended.returncode == code, (ended.stdout, ended.stderr)
        return ended

    def json(self, *arguments: str, **more: Any) -> Any:
        return json.loads(self.flash(*arguments, "--json", **more).stdout)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    made = Here(tmp_path_factory.mktemp("machine"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _empty(here: Here) -> Iterator[None]:
    yield
    for app in here.json("app", "list"):
        here.flash("app", "delete", app["name"], "-y")


def test_apps_are_made_shown_and_deleted(here: Here) -> None:
    assert "flash deploy" in here.flash("app", "list").stderr
    assert "flash deploy --app shop" in here.flash("app", "create", "shop").stderr
    here.flash("env", "create", "production")
    here.flash("env", "create", "staging")
    lines = here.flash("app", "list").stdout.splitlines()
    assert lines[0].split() == ["App", "Environments", "Builds", "Made"]
    assert lines[1].split()[:4] == ["shop", "production,", "staging", "0"]
    (document,) = here.json("app", "list")
    assert document == here.json("app", "get", "shop") == here.json("app", "get")
    assert [one["name"] for one in document["environments"]] == ["production", "staging"]
    assert document["environments"][0] == {
        "id": document["environments"][0]["id"],
        "name": "production",
        "state": "empty",
        "build": None,
        "resources": 0,
    }
    assert "Deleted the app shop" in here.flash("app", "delete", "shop", "-y").stderr
    assert here.json("app", "list") == []


def test_environments_are_made_shown_and_deleted(here: Here) -> None:
    here.flash("app", "create", "shop")
    assert "flash deploy --app shop --env staging" in here.flash("env", "create", "staging", "--app", "shop").stderr
    lines = here.flash("env", "list").stdout.splitlines()
    assert lines[0].split()[:4] == ["App", "Environment", "State", "Build"]
    assert lines[1].split()[:4] == ["shop", "staging", "empty", "-"]
    found = here.json("env", "get", "staging")
    assert (found["app"], found["name"], found["resources"], found["deployments"]) == ("shop", "staging", [], [])
    assert here.flash("env", "get", "staging").stdout.startswith("shop/staging  env-")
    here.flash("env", "delete", "staging", "-y")
    assert here.json("env", "list") == []


def test_nothing_is_asked_where_nobody_can_answer(here: Here) -> None:
    here.flash("app", "create", "shop")
    ended = here.flash("app", "delete", "shop", code=2)
    assert "Delete the app shop with 0 environments and 0 builds? Say so with -y." in ended.stderr
    assert [one["name"] for one in here.json("app", "list")] == ["shop"]


def test_what_the_server_refuses_is_said_in_a_line(here: Here) -> None:
    here.flash("app", "create", "shop")
    for arguments, words in (
        (("app", "create", "shop"), "flash app get shop"),
        (("app", "create", "a b"), "Try --app a-b"),
        (("app", "get", "shpo"), "did you mean 'shop'"),
        (("env", "get", "staging"), "no environment"),
        (("env", "create", "..", "--app", "shop"), "environment"),
    ):
        ended = here.flash(*arguments, code=1)
        assert ended.stderr.startswith("Error: ") and words in ended.stderr, ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stdout == ""


def test_of_several_apps_one_has_to_be_named_unless_the_directory_is_one(here: Here) -> None:
    for name in ("bank", "farm"):
        here.flash("app", "create", name)
    ended = here.flash("env", "get", "production", code=1)
    assert "--app: there are bank, farm" in ended.stderr
    here.flash("app", "create", "shop")
    here.flash("env", "create", "production")  # the directory's name
    assert [one["app"] for one in here.json("env", "list")] == ["shop"]
    here.flash("env", "create", "production", env={"FLASH_APP": "farm"})
    assert [one["app"] for one in here.json("env", "list", "--app", "farm")] == ["farm"]


def test_a_token_of_one_app_sees_that_one(here: Here) -> None:
    for name in ("bank", "shop"):
        here.flash("app", "create", name)
    token = here.flash("token", "create", "shopper", "--app", "shop").stdout.strip()
    (place,) = here.home.glob("hosts/*/server/server.json")
    env = {"FLASH_SERVER": json.loads(place.read_text())["url"], "FLASH_TOKEN": token}
    assert [one["name"] for one in here.json("app", "list", env=env)] == ["shop"]
    ended = here.flash("app", "create", "farm", code=1, env=env)
    assert "admin" in ended.stderr


def test_without_a_server_it_says_how_to_start_one(here: Here, tmp_path: Path) -> None:
    ended = here.flash("app", "list", code=1, env={"FLASH_HOME": str(tmp_path)})
    assert "flash server" in ended.stderr
