"""Commands of people while a real `flash server` comes and goes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from acceptance_server import RunningServer, serving

SAYS = """\
from flashmesh import CpuLiveServerless, remote


@remote(CpuLiveServerless(name="says", workersMax=1))
def say(text: str) -> str:
    print(f"said {text}")
    return text
"""
FLASH = (sys.executable, "-c", "from flashmesh.cli import main; main()")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "says.py").write_text(SAYS)
    return root


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLASH_")}
    return {**kept, "FLASH_HOME": str(home)}


def flash(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*FLASH, *arguments]
    return subprocess.run(command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=60)


def test_logs_are_followed_across_a_restart_of_the_server(tmp_path: Path, project: Path):
    server = RunningServer(project, home=tmp_path / "home").start()
    heard = tmp_path / "heard"
    with heard.open("wb") as file:
        follower = subprocess.Popen(
            [*FLASH, "logs", "-f"], env=environment(server.home), cwd=tmp_path, stdout=file, stderr=file
        )
    try:
        server.invoke("say", {"text": "before"})
        server.until(lambda: "said before" in heard.read_text())
        server.kill()
        server.start()
        server.invoke("say", {"text": "after"})
        server.until(lambda: "said after" in heard.read_text())
        assert "The server has ended." in heard.read_text()
        assert follower.poll() is None
    finally:
        follower.kill()
        follower.wait()
        server.stop()


@pytest.mark.parametrize(
    "command", [("status",), ("executions", "list"), ("logs",), ("logs", "-f"), ("call", "say"), ("server", "status")]
)
def test_without_a_server_every_command_says_how_to_start_one(tmp_path: Path, project: Path, command: tuple[str, ...]):
    """Also when one ran a moment ago and was killed, so that its address is still there."""
    with serving(project, home=tmp_path / "home") as server:
        server.kill()
        answer = flash(server.home, *command)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert "flash server" in answer.stderr


def test_the_first_minute_of_a_server(tmp_path: Path, project: Path):
    """Detached, called, looked at, stopped: exit codes, data on stdout, words on stderr."""
    home = tmp_path / "home"
    home.mkdir()
    started = flash(home, "server", "--project", str(project), "--port", "0", "--detach")
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.startswith("http://localhost:")
        called = flash(home, "call", "say", '{"text": "hello"}')
        assert (called.returncode, called.stdout) == (0, '"hello"\n'), called.stderr
        assert flash(home, "executions", "list").stdout.count("success") == 1
        assert flash(home, "server", "status").returncode == 0
        assert flash(home, "call", "say", "{").returncode == 2
    finally:
        stopped = flash(home, "server", "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert flash(home, "server", "stop").returncode == 0


def test_what_a_server_shows_of_a_folder_can_be_deployed_to_it(tmp_path: Path, project: Path):
    """From then on a name means the deployment; the status tells of it once."""
    with serving(project, home=tmp_path / "home") as server:
        assert flash(server.home, "call", "say", '{"text": "folder"}').stdout == '"folder"\n'
        deployed = flash(server.home, "deploy", str(project))
        assert deployed.returncode == 0, deployed.stderr
        called = flash(server.home, "call", "say", '{"text": "deployed"}')
        assert (called.returncode, called.stdout) == (0, '"deployed"\n'), called.stderr
        ran = json.loads(flash(server.home, "executions", "list", "--json").stdout)
        assert ran[0]["endpoint"] != ran[1]["endpoint"]
        shown = flash(server.home, "status", "--json")
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["endpoints"] == []
        assert flash(server.home, "server", "stop").returncode == 0
