"""`flash run` as its user sees it: started, edited, asked from a second terminal, and stopped without a trace."""

import json
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from session_fixtures import FLASH, HELLO, Served, serving, until, write_project

ROUTES = """\
from flashmesh import CpuLiveLoadBalancer, remote
from hello import hello

api = CpuLiveLoadBalancer(name="api")


@remote(api, method="GET", path="/greet/{name}")
async def greet(name: str) -> dict:
    return {"greeting": await hello(name), "version": 1}
"""


def flash(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FLASH, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def project(tmp_path: Path, **files: str) -> Path:
    return write_project(tmp_path / "project", **(files or {"hello": HELLO}))


def test_a_file_with_one_function_is_served_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with serving(project(tmp_path)) as served:
        assert served.post("/hello/run_sync", {"input": {"name": "Ada"}})[1]["output"] == "Hello, Ada!"
        until(lambda: "[hello] greeting Ada" in served.output(), explain=served.output)
        assert "POST  /hello/run_sync" in served.output()
        runtime = Path(json.loads((served.root / ".flash" / "session.json").read_text())["link"]).parent
        assert served.stop(signal.SIGINT) == 0
        assert not served.processes()
        assert not runtime.exists()
        assert [path.name for path in (served.root / ".flash").iterdir()] == ["server.py"]
        assert (served.root / ".gitignore").read_text() == ".flash/\n"


def test_a_saved_edit_is_served_and_only_what_it_reaches_is_reloaded(tmp_path: Path) -> None:
    other = HELLO.replace("hello", "other")
    with serving(project(tmp_path, hello=HELLO, other=other, api=ROUTES)) as served:
        assert served.get("/api/greet/Ada")[1] == {"greeting": "Hello, Ada!", "version": 1}
        served.save("other.py", other.replace("Hello", "Hi"))
        until(lambda: served.post("/other/run_sync", {"name": "Bo"})[1]["output"] == "Hi, Bo!", explain=served.output)
        until(lambda: "other.py: reloaded other" in served.output(), explain=served.output)
        served.save("api.py", ROUTES.replace('"version": 1', '"version": 2'))
        until(lambda: served.get("/api/greet/Ada")[1]["version"] == 2, explain=served.output)
        until(lambda: "api.py: server" in served.output(), explain=served.output)


def test_a_broken_edit_answers_503_with_the_reason_and_the_mended_one_is_served_again(tmp_path: Path) -> None:
    with serving(project(tmp_path)) as served:
        assert served.post("/hello/run_sync")[0] == 200
        for broken, reason in (("def (", "hello.py"), ("import not_there_at_all", "not_there_at_all")):
            served.save("hello.py", HELLO + broken + "\n")
            until(lambda: served.post("/hello/run_sync")[0] == 503, explain=served.output)
            assert reason in json.dumps(served.post("/hello/run_sync")[1])
            assert str(served.root) not in json.dumps(served.post("/hello/run_sync")[1])
            served.save("hello.py", HELLO)
            until(lambda: served.post("/hello/run_sync")[0] == 200, explain=served.output)


def test_new_renamed_and_deleted_files_change_the_routes(tmp_path: Path) -> None:
    with serving(project(tmp_path)) as served:
        served.save("sub/fresh.py", HELLO)
        until(lambda: served.post("/sub/fresh/run_sync")[0] == 200, explain=served.output)
        (served.root / "hello.py").rename(served.root / "renamed.py")
        until(lambda: served.post("/renamed/run_sync")[0] == 200, explain=served.output)
        until(lambda: served.post("/hello/run_sync")[0] == 404, explain=served.output)
        (served.root / "sub" / "fresh.py").unlink()
        until(lambda: served.post("/sub/fresh/run_sync")[0] == 404, explain=served.output)


def test_a_call_in_flight_finishes_while_its_file_is_reloaded(tmp_path: Path) -> None:
    slow = HELLO.replace('    print("greeting", name)\n', "    import time\n    time.sleep(2)\n")
    with serving(project(tmp_path, hello=slow)) as served:
        served.post("/hello/run_sync", {"name": "warm"})
        client = subprocess.Popen([*FLASH, "call", "hello", '{"name": "old"}'], cwd=served.root, stdout=-1, text=True)
        until(lambda: flash_status(served)["endpoints"][0]["running"] == 1)
        served.save("hello.py", HELLO.replace("Hello", "Hi"))
        until(lambda: served.post("/hello/run_sync", {"name": "new"})[1]["output"] == "Hi, new!", explain=served.output)
        assert client.communicate(timeout=30)[0] == '"Hello, old!"\n'


def flash_status(served: Served) -> dict:
    done = flash("status", "--json", cwd=served.root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_second_terminal_calls_follows_and_asks(tmp_path: Path) -> None:
    stream = HELLO + "\n\n@remote(cpu)\ndef count(n: int):\n    yield from range(n)\n"
    stream += "\n\n@remote(cpu)\ndef fail():\n    raise ValueError('on purpose')\n"
    with serving(project(tmp_path, hello=stream)) as served:
        below = served.root / "deeper"
        below.mkdir()
        assert flash("call", "hello.hello", '{"name": "Bo"}', cwd=below).stdout == '"Hello, Bo!"\n'
        assert flash("call", "count", "3", cwd=below).stdout == "0\n1\n2\n"
        (below / "in.json").write_text('{"name": "file"}')
        assert flash("call", "hello.hello", "@in.json", cwd=below).stdout == '"Hello, file!"\n'
        failed = flash("call", "fail", cwd=below)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert "ValueError: on purpose" in failed.stderr
        assert 'hello.py", line' in failed.stderr
        unknown = flash("call", "helo", cwd=below)
        assert unknown.returncode == 1
        assert "Did you mean" in unknown.stderr
        later = json.loads(flash("call", "count", "2", "--async", cwd=below).stdout)
        until(lambda: served.get(f"/hello/count/status/{later['id']}")[1]["status"] == "COMPLETED")
        assert "[hello] greeting Bo" in flash("logs", "hello.hello", cwd=below).stdout
        [endpoint] = flash_status(served)["endpoints"]
        assert (endpoint["endpoint"], endpoint["workers"], endpoint["kind"]) == ("hello", 1, "QB")


def test_following_the_logs_prints_what_comes_until_the_session_ends(tmp_path: Path) -> None:
    with serving(project(tmp_path)) as served:
        following = subprocess.Popen([*FLASH, "logs", "-f"], cwd=served.root, stdout=-1, stderr=-1, text=True)
        assert following.stdout is not None
        served.post("/hello/run_sync", {"name": "Cy"})
        assert following.stdout.readline() == "[hello] greeting Cy\n"
        served.stop()
        assert "The session has ended." in following.communicate(timeout=30)[1]


def test_no_functions_is_an_error_with_an_example(tmp_path: Path) -> None:
    root = project(tmp_path, plain="print('never executed')\n")
    done = flash("run", str(root), cwd=tmp_path)
    assert done.returncode == 1
    assert "@Endpoint(" in done.stderr
    assert not (root / ".flash").exists()


def test_a_taken_port_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = flash("run", str(project(tmp_path)), "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr


def test_a_second_session_in_the_same_directory_is_refused_with_the_address_of_the_first(tmp_path: Path) -> None:
    with serving(project(tmp_path)) as served:
        done = flash("run", str(served.root), cwd=tmp_path)
        assert done.returncode == 1
        assert served.url in done.stderr


def test_a_session_that_was_killed_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    root = project(tmp_path)
    with serving(root) as first:
        first.stop(signal.SIGKILL)
        until(lambda: not first.processes(), explain=lambda: str(first.processes()))
        assert (root / ".flash" / "session.json").exists()
    with serving(root) as second:
        assert second.post("/hello/run_sync")[0] == 200


TAKES_TURNS = """\
import sys, threading
from flashmesh import CpuLiveLoadBalancer, remote

api = CpuLiveLoadBalancer(name="api")
both = threading.Barrier(2, timeout=20)


@remote(api, method="GET", path="/say/{name}")
def say(name: str) -> None:
    sys.stdout.write(f"{name} begins, ")
    both.wait()
    sys.stdout.write(f"{name} goes on, ")
    both.wait()
    print(name, "ends")
"""


def test_lines_that_two_requests_of_one_route_write_in_pieces_stay_whole(tmp_path: Path) -> None:
    with serving(project(tmp_path, api=TAKES_TURNS)) as served:
        with ThreadPoolExecutor(2) as clients:
            answers = list(clients.map(served.get, ("/api/say/Ada", "/api/say/Bo")))
        assert [status for status, _ in answers] == [200, 200]
        for name in ("Ada", "Bo"):
            line = f"[say] {name} begins, {name} goes on, {name} ends\n"
            until(lambda line=line: line in served.output(), explain=served.output)


@pytest.mark.parametrize("second", ["at once", "when the server has left"])
def test_a_second_interrupt_does_not_wait_for_running_calls(tmp_path: Path, second: str) -> None:
    endless = HELLO.replace('    print("greeting", name)\n', "    import time\n    time.sleep(600)\n")
    with serving(project(tmp_path, hello=endless)) as served:
        assert served.post("/hello/run")[1]["status"] in ("IN_QUEUE", "IN_PROGRESS")
        until(lambda: flash_status(served)["endpoints"][0]["running"] == 1)
        served.process.send_signal(signal.SIGINT)
        until(lambda: "Stopping" in served.output(), explain=served.output)
        if second == "when the server has left":
            until(lambda: not any("dev.server.template" in name for name in served.processes().values()))
        assert served.stop(signal.SIGINT) == 130, served.output()
        until(lambda: not served.processes(), explain=lambda: str(served.processes()))


def test_without_fork_the_plain_server_serves_and_is_started_anew(tmp_path: Path) -> None:
    with serving(project(tmp_path, hello=HELLO, api=ROUTES), "--no-fork") as served:
        assert served.get("/api/greet/Ada")[1]["version"] == 1
        served.save("api.py", ROUTES.replace('"version": 1', '"version": 2'))
        until(lambda: '"version": 2' in json.dumps(served.get("/api/greet/Ada")[1]), explain=served.output)
        served.stop()
        assert not served.processes()


@pytest.mark.parametrize("reload", ["--no-reload"])
def test_without_reload_an_edit_changes_nothing_until_the_next_start(tmp_path: Path, reload: str) -> None:
    with serving(project(tmp_path), reload) as served:
        assert served.post("/hello/run_sync")[1]["output"] == "Hello, world!"
        served.save("hello.py", HELLO.replace("Hello", "Hi"))
        assert served.post("/hello/run_sync")[1]["output"] == "Hello, world!"
