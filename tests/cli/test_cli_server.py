"""Commands that talk to a server: the same words as with a session, over HTTP."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

FLASH = str(Path(sys.executable).with_name("flash"))
PROJECT = """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="cpu")


@remote(cpu)
def hello(name: str = "world") -> dict:
    print(f"greeting {name}")
    return {"message": f"Hello, {name}!"}


@remote(cpu)
def fails() -> None:
    raise ValueError("no such luck")


@remote(cpu)
def count(n: int):
    yield from range(n)


@remote(cpu)
def wait(seconds: float) -> None:
    import time

    time.sleep(seconds)
"""


class Place:
    """A user with a server of their own, and a directory without a project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLASH_", "RUNPOD_"))}
        self.env = {**kept, "FLASH_HOME": str(folder / "home")}

    def flash(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [FLASH, *arguments],
            cwd=self.elsewhere,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def json(self, *arguments: str) -> Any:
        done = self.flash(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("cli"))
    project = place.folder / "project"
    project.mkdir()
    (project / "jobs.py").write_text(PROJECT)
    started = place.flash("server", "--project", str(project), "--port", "0", "--detach")
    assert started.returncode == 0, started.stderr
    try:
        yield place
    finally:
        place.flash("server", "stop", "--now")


def ended(place: Place, id: str) -> dict[str, Any]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found: dict[str, Any] = place.json("executions", "get", id, "--json")
        if found["status"] not in ("queued", "running"):
            return found
    raise AssertionError(f"{id} did not end")


def test_a_call_prints_the_result_as_json(place: Place) -> None:
    assert place.json("call", "hello", '{"name": "Ada"}') == {"message": "Hello, Ada!"}
    assert place.json("call", "jobs.hello", "--timeout", "20") == {"message": "Hello, world!"}


def test_a_generators_items_are_lines(place: Place) -> None:
    assert place.flash("call", "count", "3").stdout.split() == ["0", "1", "2"]


def test_a_failed_call_shows_the_remote_traceback_and_fails(place: Place) -> None:
    done = place.flash("call", "fails")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ValueError: no such luck" in done.stderr
    assert "jobs.py" in done.stderr


def test_an_unknown_function_is_said_and_fails(place: Place) -> None:
    done = place.flash("call", "helo")
    assert done.returncode == 1
    assert "helo" in done.stderr


def test_bad_json_is_a_mistake_of_use(place: Place) -> None:
    assert place.flash("call", "hello", "{").returncode == 2


def test_a_wait_that_ends_first_names_the_execution_that_goes_on(place: Place) -> None:
    done = place.flash("call", "wait", '{"seconds": 0.5}', "--timeout", "0.05")
    assert done.returncode == 1
    assert "goes on" in done.stderr
    id = done.stderr.split("the execution ")[1].split(" ")[0]
    assert ended(place, id)["status"] == "success"


def test_a_call_for_later_prints_its_id_and_its_record_has_the_result(place: Place) -> None:
    accepted = place.json("call", "hello", '{"name": "Bob"}', "--async")
    assert ended(place, accepted["id"])["output"] == {"message": "Hello, Bob!"}
    text = place.flash("executions", "get", accepted["id"]).stdout
    assert '{"message": "Hello, Bob!"}' in text


def test_executions_are_listed_filtered_and_counted(place: Place) -> None:
    failed = place.json("call", "fails", "--async")["id"]
    ended(place, failed)
    listed = place.json("executions", "list", "--status", "error", "--function", "fails", "--json")
    assert failed in [record["executionId"] for record in listed]
    assert {record["status"] for record in listed} == {"error"}
    table = place.flash("executions", "list", "-n", "1").stdout.splitlines()
    assert len(table) == 2
    assert table[0].split()[:3] == ["Id", "Function", "Status"]


def test_an_execution_is_cancelled_and_run_again(place: Place) -> None:
    id = place.json("call", "wait", '{"seconds": 60}', "--async")["id"]
    place.flash("executions", "cancel", id)
    assert ended(place, id)["status"] == "cancelled"
    failed = place.json("call", "fails", "--async")["id"]
    ended(place, failed)
    again = place.flash("executions", "retry", failed)
    assert again.returncode == 0, again.stderr
    found = ended(place, again.stdout.strip())
    assert (found["status"], found["retriedFrom"]) == ("error", failed)


def test_a_cancel_that_came_too_late_says_so(place: Place) -> None:
    id = place.json("call", "hello", "--async")["id"]
    ended(place, id)
    done = place.flash("executions", "cancel", id)
    assert (done.returncode, done.stderr) == (0, "It had ended before (success); nothing was cancelled.\n")


def test_logs_of_what_printed_nothing_say_so(place: Place) -> None:
    assert place.flash("logs", "wait").stderr == "wait: nothing has been printed yet. `flash logs -f` waits for it.\n"


def test_an_unknown_execution_is_said_and_fails(place: Place) -> None:
    done = place.flash("executions", "get", "none")
    assert done.returncode == 1
    assert "none" in done.stderr


def test_logs_show_what_functions_printed(place: Place) -> None:
    place.flash("call", "hello", '{"name": "Carol"}')
    end = time.monotonic() + 30
    while "[hello] greeting Carol" not in place.flash("logs", "hello").stdout:
        assert time.monotonic() < end


def test_logs_of_one_execution_are_its_own(place: Place) -> None:
    ids = [place.json("call", "hello", f'{{"name": "{name}"}}', "--async")["id"] for name in ("Eve", "Finn")]
    for id in ids:
        ended(place, id)
    end = time.monotonic() + 30
    while "greeting Finn" not in (text := place.flash("logs", ids[1]).stdout):
        assert time.monotonic() < end
    assert "Eve" not in text


def test_logs_follow_until_interrupted(place: Place) -> None:
    with subprocess.Popen(
        [FLASH, "logs", "-f", "-n", "0"], cwd=place.elsewhere, env=place.env, stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        heard: list[str] = []
        while not heard:  # nobody says when it has begun to listen
            place.flash("call", "hello", '{"name": "Dora"}')
            os.set_blocking(follower.stdout.fileno(), False)
            heard = [line for line in follower.stdout if "greeting Dora" in line]
        follower.terminate()


def test_status_has_a_row_per_endpoint(place: Place) -> None:
    place.flash("call", "hello")
    document = place.json("status", "--json")
    (row,) = document["endpoints"]
    assert (row["endpoint"], row["state"], row["mode"]) == ("jobs", "ready", "WARM")
    assert "jobs.hello" in row["functions"]
    assert "Endpoint" in place.flash("status").stdout


def test_a_server_named_by_option_or_variable_wins(place: Place) -> None:
    url = place.json("server", "status", "--json")["url"]
    assert place.flash("call", "hello", "--server", url).returncode == 0
    nobody = place.flash("call", "hello", FLASH_SERVER="http://127.0.0.1:9")
    assert nobody.returncode == 1
    assert "http://127.0.0.1:9 does not answer" in nobody.stderr


def test_without_any_server_it_says_how_to_get_one(place: Place, tmp_path: Path) -> None:
    for command in (["call", "hello"], ["executions", "list"], ["status"], ["logs"]):
        done = place.flash(*command, FLASH_HOME=str(tmp_path))
        assert done.returncode == 1, command
        assert "flash server" in done.stderr, command


@pytest.mark.parametrize(
    "command",
    [
        ["server"],
        ["server", "stop"],
        ["server", "status"],
        ["server", "install"],
        ["server", "uninstall"],
        ["executions"],
        ["executions", "list"],
        ["executions", "get"],
        ["executions", "cancel"],
        ["executions", "retry"],
        ["call"],
        ["logs"],
        ["status"],
    ],
)
def test_help_ends_in_examples(place: Place, command: list[str]) -> None:
    text = place.flash(*command, "--help").stdout
    assert f"flash {' '.join(command)}" in text.partition("Examples:")[2]


def test_the_command_line_imports_nothing_heavy(place: Place) -> None:
    program = (
        "import sys; from click.testing import CliRunner; from flashmesh.cli.commands import flash;"
        "CliRunner().invoke(flash, ['server', '--help']); CliRunner().invoke(flash, ['executions', '--help']);"
        "print([name for name in ('asyncio', 'msgspec', 'starlette', 'uvicorn', 'sqlite3', 'uvloop', 'cryptography') "
        "if name in sys.modules])"
    )
    # A process whose coverage is measured has imported sqlite3 for that alone.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_of_several_apps_is_told_with_the_options_that_say_which(place: Place) -> None:
    class Several(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b'{"error": "AMBIGUOUS_FUNCTION", "message": "f could be any of: a, b. Say which with ?app="}'
            self.send_response(409)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Several) as server, ThreadPoolExecutor(1) as threads:
        answering = threads.submit(server.handle_request)
        done = place.flash("call", "f", "--server", f"http://127.0.0.1:{server.server_port}")
        answering.result(30)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: f could be any of: a, b.")
    assert done.stderr.endswith("On the command line that is `--app` and `--env`.\n")
