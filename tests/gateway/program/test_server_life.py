"""`flash server` as a program: it starts, answers, stops, and comes back with what it had accepted."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_fixtures import ServerProcess, descendants, flash, is_gone, serving, until, write_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class Background:
    """A request that waits on a thread of its own."""

    def __init__(self, server: ServerProcess, path: str, body: object) -> None:
        self.answer: tuple[int, Any, dict[str, str]] | None = None
        self._thread = threading.Thread(target=self._send, args=(server, path, body), daemon=True)
        self._thread.start()

    def _send(self, server: ServerProcess, path: str, body: object) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the server was ended
            self.answer = server.request("POST", path, body)

    def result(self) -> tuple[int, Any, dict[str, str]]:
        self._thread.join(30)
        assert self.answer is not None
        return self.answer


def written(path: Path) -> str:
    """What a file says; empty while it is not there, or not yet written."""
    return path.read_text() if path.exists() else ""


def test_a_projects_functions_answer_without_a_deploy_step(home: Path, project: Path) -> None:
    with serving(home, project=project) as server:
        assert server.invoke("hello", name="Ada") == {"message": "Hello, Ada!"}
        assert server.request("GET", "/readyz")[0] == 200
        assert server.request("GET", "/healthz")[0] == 200
        status, body, _ = server.request("POST", "/v2/cpu/hello/runsync", {"input": {"name": "Bob"}})
        assert (status, body["output"]) == (200, {"message": "Hello, Bob!"})
        lines = until(lambda: [line for line in server.lines() if line["event"] == "invocation"])
        assert lines[0]["function"] == "jobs.hello"
        assert server.stop() == 0


def test_after_sigterm_nothing_is_left(home: Path, project: Path) -> None:
    with serving(home, project=project) as server:
        server.invoke("hello")
        below = server.pids()
        assert len(below) > 2
        assert server.stop() == 0
        assert all(is_gone(pid) for pid in below)
        assert not (server.data / "server.json").exists()
        assert not Path(server.facts["link"]).parent.exists()


def test_a_killed_server_of_a_project_leaves_no_process(home: Path, project: Path) -> None:
    with serving(home, project=project) as server:
        server.invoke("hello")
        below = server.pids()
        server.kill()
        until(lambda: all(is_gone(pid) for pid in below), "the end of keeper, template and workers")


def test_what_a_killed_server_had_accepted_goes_on_at_the_next_start(home: Path, project: Path, tmp_path: Path) -> None:
    with serving(home, project=project) as server:
        running = [server.enqueue("wait_for", folder=str(tmp_path), name=f"run{number}") for number in range(2)]
        until(lambda: len(list(tmp_path.glob("*.begun"))) == 2, "both calls' start")
        queued = server.enqueue("hello", name="later")
        below = server.pids()
        server.kill()
        until(lambda: all(is_gone(pid) for pid in below))
    for number in range(2):
        (tmp_path / f"run{number}.end").write_text("")
    with serving(home, project=project) as server:
        assert server.ended(queued)["output"] == {"message": "Hello, later!"}
        for number, id in enumerate(running):
            found = server.ended(id)
            assert (found["status"], found["attempt"]) == ("success", 2)
            assert (tmp_path / f"run{number}.done").read_text() == "done\n"
        assert server.stop() == 0


def test_a_call_that_failed_can_be_retried_after_a_restart(home: Path, project: Path) -> None:
    """Also one with a payload that is too large for a row, on both APIs."""
    with serving(home, project=project) as server:
        accepted = [server.enqueue("fails"), server.enqueue("refuses", text="x" * 200_000)]
        assert [server.ended(id)["status"] for id in accepted] == ["error", "error"]
        assert server.stop() == 0
    with serving(home, project=project) as server:
        for id in accepted:
            status, body, _ = server.request("POST", f"/v1/executions/{id}:retry")
            assert status == 202
            again = server.ended(body["executionId"])
            assert (again["retriedFrom"], again["status"]) == (id, "error")
        assert again["error"]["message"] == "200000 characters"
        status, body, _ = server.request("POST", f"/v2/cpu/retry/{accepted[0]}")
        assert (status, body["status"]) == (200, "IN_QUEUE")
        assert server.ended(body["id"])["retriedFrom"] == accepted[0]
        server.kill()


def test_kept_endpoints_finish_what_they_run_while_the_server_is_away(
    home: Path, project: Path, tmp_path: Path
) -> None:
    with serving(home, "--keep-endpoints", project=project) as server:
        running = server.enqueue("wait_for", folder=str(tmp_path), name="a")
        worker = int(until(lambda: written(tmp_path / "a.begun")))
        server.kill()
    assert not is_gone(worker)
    (tmp_path / "a.end").write_text("")
    until((tmp_path / "a.done").exists)
    with serving(home, "--keep-endpoints", project=project) as server:
        found = server.ended(running)
        assert (found["status"], found["attempt"], found["output"]) == ("success", 1, worker)
        assert (tmp_path / "a.done").read_text() == "done\n"
        assert server.stop() == 0
    until(lambda: is_gone(worker))


def test_kept_endpoints_that_the_project_lost_are_ended_and_edited_ones_serve_the_edit(
    home: Path, project: Path, tmp_path: Path
) -> None:
    """While the server was away one file went and another one changed."""
    pid = "from flashmesh import CpuLiveServerless, remote\nimport os\n\ncpu = CpuLiveServerless(name='{0}')\n\n\n"
    pid += "@remote(cpu)\ndef {0}() -> list:\n    return [os.getpid(), '{1}']\n"
    (project / "gone.py").write_text(pid.format("gone", "old"))
    (project / "edited.py").write_text(pid.format("edited", "old"))
    with serving(home, "--keep-endpoints", project=project) as server:
        gone, edited = server.invoke("gone"), server.invoke("edited")
        server.kill()
    (project / "gone.py").unlink()
    (project / "edited.py").write_text(pid.format("edited", "new"))
    with serving(home, "--keep-endpoints", project=project) as server:
        until(lambda: is_gone(gone[0]), "the end of what is not declared any more")
        until(lambda: server.invoke("edited")[1] == "new", "the edit")
        until(lambda: is_gone(edited[0]), "the end of the old build")
        assert server.request("POST", "/v1/functions/gone:invoke", {"input": {}})[0] == 404
        assert server.stop() == 0


def test_a_server_that_is_started_again_leaves_its_endpoints_serving(home: Path, project: Path, tmp_path: Path) -> None:
    """What runs goes on and is not waited for; `stop` says so, and refuses where endpoints end with the server."""
    with serving(home, "--keep-endpoints", project=project) as server:
        running = server.enqueue("wait_for", folder=str(tmp_path), name="a")
        until((tmp_path / "a.begun").exists)
        worker = int((tmp_path / "a.begun").read_text())
        until(lambda: server.execution(running)["status"] == "running")
        stopped = server.flash("server", "stop", "--keep-endpoints")
        assert "serve on" in stopped.stderr
        assert server.process.wait(10) == 0
    assert not is_gone(worker)
    (tmp_path / "a.end").write_text("")
    until((tmp_path / "a.done").exists)
    with serving(home, "--keep-endpoints", project=project) as server:
        found = server.ended(running)
        assert (found["status"], found["attempt"], found["output"]) == ("success", 1, worker)
        assert server.flash("server", "stop").returncode == 0
    until(lambda: is_gone(worker))
    with serving(home, project=project) as server:
        refused = server.flash("server", "stop", "--keep-endpoints")
        assert (refused.returncode, server.process.poll()) == (2, None)
        assert "keeps no endpoints" in refused.stderr


def test_stop_ends_endpoints_that_were_left_serving_on_purpose(home: Path, project: Path, tmp_path: Path) -> None:
    """The server that left them has gone in good order, so nothing says any more where it answered."""
    with serving(home, "--keep-endpoints", project=project) as server:
        server.enqueue("wait_for", folder=str(tmp_path), name="a")
        until((tmp_path / "a.begun").exists)
        worker = int((tmp_path / "a.begun").read_text())
        server.flash("server", "stop", "--keep-endpoints")
        assert server.process.wait(10) == 0
    assert "No server runs here.\n" in flash(home, "server", "stop", "--keep-endpoints", cwd=home).stderr
    assert not is_gone(worker)
    stopped = flash(home, "server", "stop", cwd=home)
    assert (stopped.returncode, "left serving are ended" in stopped.stderr) == (0, True)
    until(lambda: is_gone(worker))
    assert flash(home, "server", "stop", cwd=home).stderr == "No server runs here.\n"


def test_stop_now_ends_kept_endpoints_too(home: Path, project: Path, tmp_path: Path) -> None:
    with serving(home, "--keep-endpoints", project=project) as server:
        server.enqueue("wait_for", folder=str(tmp_path), name="a")
        until((tmp_path / "a.begun").exists)
        worker = int((tmp_path / "a.begun").read_text())
        assert server.flash("server", "stop", "--now").returncode == 0
    until(lambda: is_gone(worker))


def test_stop_ends_endpoints_that_outlived_their_server(home: Path, project: Path, tmp_path: Path) -> None:
    with serving(home, "--keep-endpoints", project=project) as server:
        server.enqueue("wait_for", folder=str(tmp_path), name="a")
        worker = int(until(lambda: written(tmp_path / "a.begun")))
        server.kill()
        stopped = server.flash("server", "stop")
    assert "its endpoints are ended" in stopped.stderr
    until(lambda: is_gone(worker))


def test_a_server_that_keeps_no_endpoints_ends_those_that_were_kept(home: Path, project: Path, tmp_path: Path) -> None:
    with serving(home, "--keep-endpoints", project=project) as server:
        running = server.enqueue("wait_for", folder=str(tmp_path), name="a")
        worker = int(until(lambda: written(tmp_path / "a.begun")))
        server.kill()
    (tmp_path / "a.begun").unlink()
    with serving(home, project=project) as server:
        until(lambda: is_gone(worker))
        until((tmp_path / "a.begun").exists)  # by a worker of the new server
        (tmp_path / "a.end").write_text("")
        assert server.ended(running)["output"] != worker


def test_sigterm_lets_running_calls_finish_and_takes_no_new_ones(home: Path, project: Path, tmp_path: Path) -> None:
    with serving(home, project=project) as server:
        call = Background(server, "/v1/functions/wait_for:invoke", {"input": {"folder": str(tmp_path), "name": "a"}})
        until((tmp_path / "a.begun").exists)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.request("GET", "/readyz")[0] == 503, "readiness to go")
        status, body, headers = server.request("POST", "/v1/functions/hello:invoke", {"input": {}})
        assert (status, body["error"], headers["retry-after"]) == (503, "STOPPING", "5")
        assert server.request("POST", "/v1/functions/hello:enqueue", {"input": {}})[0] == 503
        assert server.request("GET", "/v1/functions")[0] == 200  # looking is allowed
        (tmp_path / "a.end").write_text("")
        assert call.result()[0] == 200
        assert server.process.wait(30) == 0


def test_queued_async_calls_stay_queued_during_a_drain_and_run_after_the_restart(
    home: Path, project: Path, tmp_path: Path
) -> None:
    """The drain ends with the calls that run; sync ones that wait are among those that still run."""
    with serving(home, project=project) as server:
        running = [server.enqueue("wait_for", folder=str(tmp_path), name=f"run{number}") for number in range(2)]
        until(lambda: len(list(tmp_path.glob("run*.begun"))) == 2, "both calls' start")
        queued = [server.enqueue("wait_for", folder=str(tmp_path), name=f"later{number}") for number in range(3)]
        sync = Background(server, "/v1/functions/hello:invoke", {"input": {"name": "Ada"}})
        until(lambda: server.request("GET", "/v2/cpu/health")[1]["jobs"]["inQueue"] == 4, "the sync call's arrival")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.request("GET", "/readyz")[0] == 503)
        for number in range(2):
            (tmp_path / f"run{number}.end").write_text("")
        assert sync.result()[1]["output"] == {"message": "Hello, Ada!"}
        assert server.process.wait(10) == 0  # the drain may take 30 s
        assert list(tmp_path.glob("later*.begun")) == []
    for number in range(3):
        (tmp_path / f"later{number}.end").write_text("")
    with serving(home, project=project) as server:
        assert [server.ended(id)["attempt"] for id in queued] == [1, 1, 1]
        assert [server.execution(id)["status"] for id in running] == ["success", "success"]


def test_a_call_that_outlasts_the_drain_is_ended(home: Path, project: Path, tmp_path: Path) -> None:
    with serving(home, "--drain", "0.2", project=project) as server:
        id = server.enqueue("wait_for", folder=str(tmp_path), name="a")
        until((tmp_path / "a.begun").exists)
        assert server.stop() == 0
        worker = int((tmp_path / "a.begun").read_text())
        assert is_gone(worker)
    (tmp_path / "a.end").write_text("")
    with serving(home, project=project) as server:
        assert server.ended(id)["status"] == "success"  # accepted is accepted


def test_a_second_signal_ends_at_once(home: Path, project: Path, tmp_path: Path) -> None:
    with serving(home, project=project) as server:
        Background(server, "/v1/functions/wait_for:invoke", {"input": {"folder": str(tmp_path), "name": "a"}})
        until((tmp_path / "a.begun").exists)
        below = server.pids()
        server.process.send_signal(signal.SIGINT)
        until(lambda: server.request("GET", "/readyz")[0] == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 130
        until(lambda: all(is_gone(pid) for pid in below))


def test_a_second_server_on_the_same_data_is_refused(home: Path, project: Path) -> None:
    with serving(home, project=project) as server:
        second = flash(home, "server", "--port", "0", cwd=home)
        assert second.returncode == 1
        assert f"pid {server.process.pid}" in second.stderr
        assert str(server.port) in second.stderr
        with serving(home / "other", project=project) as other:  # another home, another data directory
            assert other.invoke("hello") == {"message": "Hello, world!"}


def test_a_port_that_is_taken_is_refused_by_its_owners_name(home: Path, project: Path) -> None:
    home.mkdir()
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        found = flash(home, "server", "--port", str(port), "--project", str(project), cwd=home)
    assert found.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use by" in found.stderr
    assert f"(pid {os.getpid()})" in found.stderr
    assert "--port" in found.stderr
    assert not list(home.glob("hosts/*/server/server.json"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "99999"], "--port is 99999"),
        (["--project", "/none/such"], "no such directory"),
        (["--drain", "soon"], "--drain is 'soon'"),
    ],
)
def test_a_bad_option_is_a_mistake_of_use(home: Path, options: list[str], says: str) -> None:
    home.mkdir()
    found = flash(home, "server", *options, cwd=home)
    assert found.returncode == 2
    assert says in found.stderr


def test_beyond_the_loopback_it_speaks_tls_and_asks_for_a_token(home: Path, project: Path) -> None:
    with serving(home, "--host", "0.0.0.0", project=project) as server:
        assert server.facts["url"].startswith("https://")
        (told,) = until(lambda: [line for line in server.lines() if "fingerprint" in line])
        assert told["fingerprint"].startswith("sha256:")
        env = {"FLASH_SERVER": f"https://127.0.0.1:{server.port}"}
        called = server.flash("call", "hello", '{"name": "Ada"}')  # as the server's user, who has its token
        assert json.loads(called.stdout) == {"message": "Hello, Ada!"}, called.stderr
        stranger = flash(home.parent / "stranger", "call", "hello", cwd=home, env=env)
        assert stranger.returncode == 1
        assert "certificate" in stranger.stderr.lower()


@contextlib.contextmanager
def stream_of(server: ServerProcess, token: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/logs?follow=1", headers={"Authorization": f"Bearer {token}"})
        with connection.getresponse() as answer:
            assert answer.status == 200
            yield answer


def test_a_stream_ends_when_its_token_is_revoked_and_others_go_on(home: Path, project: Path) -> None:
    with serving(home, project=project) as server, contextlib.ExitStack() as stack:
        tokens = [server.flash("token", "create", name).stdout.strip() for name in ("ci", "other")]
        streams = [stack.enter_context(stream_of(server, token)) for token in tokens]
        server.invoke("hello", name="Ada")
        for stream in streams:
            while b"greeting Ada" not in (line := stream.readline()):
                assert line
        server.flash("token", "revoke", "ci")
        said = streams[0].read()
        assert b"event: error" in said and b"UNAUTHORIZED" in said
        server.invoke("hello", name="Bob")
        while b"greeting Bob" not in (line := streams[1].readline()):
            assert line


@pytest.mark.parametrize("path", ["/v1/functions", "/v1/executions/none"])
def test_a_connection_that_is_kept_alive_shows_its_token_with_every_request(
    home: Path, project: Path, path: str
) -> None:
    """On the short way and on the long one."""
    with serving(home, project=project) as server:
        token = server.flash("token", "create", "ci").stdout.strip()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

        def ask() -> int:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            answer.read()
            return answer.status

        assert [ask(), ask()] == [200 if path == "/v1/functions" else 404] * 2
        socket_before = connection.sock
        server.flash("token", "revoke", "ci")
        assert until(lambda: ask() == 401)
        assert connection.sock is socket_before
        connection.close()


def test_a_token_for_another_app_calls_nothing_here(home: Path, project: Path) -> None:
    """The app of a project is its folder's name, unless it says another."""
    with serving(home, project=project) as server:
        for app, expected in (("project", 200), ("bank", 404)):
            token = server.flash("token", "create", f"ci-{app}", "--app", app).stdout.strip()
            for path, body in (("/v1/functions/hello:invoke", {"input": {}}), ("/v2/cpu/hello/runsync", {"input": {}})):
                status, answer, _ = server.request("POST", path, body, Authorization=f"Bearer {token}")
                assert status == expected, answer
        headers = {"X-Flash-App": "bank"}
        assert server.request("POST", "/v1/functions/hello:invoke", {"input": {}}, **headers)[0] == 404


def test_a_network_named_as_plain_needs_no_tls_but_a_token(home: Path, project: Path) -> None:
    with serving(home, "--host", "127.0.0.2", "--plain-networks", "127.0.0.0/8", project=project) as server:
        assert server.facts["url"] == f"http://127.0.0.2:{server.port}"


def test_workers_of_other_machines_dial_a_port_that_speaks_tls(home: Path, project: Path) -> None:
    with serving(home, "--link-host", "127.0.0.1", "--link-port", "0", project=project) as server:
        (port,) = until(lambda: [line["link_port"] for line in server.lines() if "link_port" in line])
        authority = next(home.glob("hosts/*/ca.pem"))
        context = ssl.create_default_context(cafile=str(authority))
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            assert secured.version() == "TLSv1.3"


def test_a_bad_variable_is_named(home: Path) -> None:
    home.mkdir()
    found = flash(home, "server", cwd=home, env={"FLASH_SERVER_PORT": "http"})
    assert found.returncode == 2
    assert "FLASH_SERVER_PORT is 'http'" in found.stderr


def test_detached_it_says_where_it_answers_and_stop_ends_it(home: Path, project: Path) -> None:
    home.mkdir()
    started = flash(home, "server", "--project", str(project), "--port", "0", "--detach", cwd=home)
    assert started.returncode == 0, started.stderr
    url = started.stdout.strip()
    try:
        told = json.loads(flash(home, "server", "status", "--json", cwd=home).stdout)
        assert told["running"] is True
        assert told["url"].rpartition(":")[2] == url.rpartition(":")[2]
        assert told["project"] == str(project)
        below = descendants(told["pid"])
        called = flash(home, "call", "hello", '{"name": "Ada"}', cwd=home)
        assert json.loads(called.stdout) == {"message": "Hello, Ada!"}
    finally:
        stopped = flash(home, "server", "stop", cwd=home)
    assert stopped.returncode == 0, stopped.stderr
    assert all(is_gone(pid) for pid in below)
    again = flash(home, "server", "status", cwd=home)
    assert again.returncode == 1
    assert "No server runs here" in again.stderr
    assert flash(home, "server", "stop", cwd=home).returncode == 0


def test_detached_beyond_this_machine_it_says_how_other_machines_connect(home: Path, project: Path) -> None:
    """What the foreground form prints of its certificate, of its link, and of what is wrong with the project."""
    home.mkdir()
    (project / "broken.py").write_text("from flashmesh import remote\n\n@remote(\n")
    words = ("server", "--project", str(project), "--host", "0.0.0.0", "--link-host", "127.0.0.1", "--link-port", "0")
    started = flash(home, *words, "--port", "0", "--detach", cwd=home)
    try:
        assert started.returncode == 0, started.stderr
        url = started.stdout.strip()
        port = url.rpartition(":")[2]
        found = re.search(r"certificate's fingerprint is (sha256:[0-9a-f]{64})", started.stderr)
        assert found is not None, started.stderr
        assert f"flash login https://HOST:{port} --fingerprint {found[1]} --token -" in started.stderr
        assert re.search(r"Workers dial in at 127\.0\.0\.1:\d+; the link's fingerprint is sha256:", started.stderr)
        assert "broken.py:3" in started.stderr
        token = flash(home, "token", "create", "other", cwd=home).stdout.strip()
        there = {"FLASH_HOME": str(home / "another-machine")}
        words = ("login", f"https://127.0.0.1:{port}", "--fingerprint", found[1], "--token", token)
        assert flash(home, *words, cwd=home, env=there).returncode == 0
    finally:
        flash(home, "server", "stop", "--now", cwd=home)


def test_detached_it_says_why_it_did_not_start(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    found = flash(home, "server", "--project", str(empty), "--port", "0", "--detach", cwd=home)
    assert found.returncode == 1
    assert "No function in" in found.stderr
    assert flash(home, "server", "status", cwd=home).returncode == 1


def test_stop_clears_up_after_a_server_that_was_killed(home: Path, project: Path) -> None:
    with serving(home, project=project) as server:
        server.kill()
        stopped = server.flash("server", "stop")
        assert stopped.returncode == 0
        assert "gone already" in stopped.stderr
        assert not (server.data / "server.json").exists()


def test_a_file_that_does_not_import_shows_in_readiness(home: Path, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    (project / "broken.py").write_text(
        "from flashmesh import CpuLiveServerless, remote\nimport no_such_module_at_all\n"
        'other = CpuLiveServerless(name="other")\n\n\n@remote(other)\ndef never() -> None: ...\n'
    )
    with serving(home, project=project) as server:
        assert server.invoke("hello") == {"message": "Hello, world!"}
        status, body, _ = server.request("POST", "/v1/functions/never:invoke", {"input": {}})
        assert status == 503
        assert "no_such_module_at_all" in json.dumps(body)
        status, body, _ = server.request("GET", "/readyz")
        assert (status, body["status"]) == (200, "degraded")  # the other endpoint is served
        assert body["reasons"] == [{"endpoint": "broken", "code": "IMPORT_FAILED"}]
        token = next(home.glob("hosts/*/token")).read_text().strip()
        status, body, _ = server.request("GET", "/readyz", Authorization=f"Bearer {token}")
        assert "no_such_module_at_all" in body["reasons"][0]["message"]
        assert server.invoke("hello") == {"message": "Hello, world!"}


def test_what_functions_print_is_kept_in_a_file_of_their_endpoint(home: Path, project: Path) -> None:
    with serving(home, project=project) as server:
        server.invoke("hello", name="Ada")
        path = server.data / "logs" / "jobs.log"
        until(lambda: path.exists() and "stdout greeting Ada" in path.read_text())


def test_metrics_of_a_running_server_are_read_by_prometheus(home: Path, project: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with serving(home, project=project) as server:
        for _ in range(3):
            server.invoke("hello")
        server.request("POST", "/v1/functions/fails:invoke", {"input": {}})
        token = {"Authorization": f"Bearer {next(home.glob('hosts/*/token')).read_text().strip()}"}
        status, text, headers = server.request("GET", "/metrics", **token)
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        samples = {
            (sample.name, sample.labels.get("function")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    assert samples["function_success_total", "jobs.hello"] == 3
    assert samples["function_error_total", "jobs.fails"] == 1
    assert samples["function_latency_seconds_count", "jobs.hello"] == 3
    assert samples["flash_http_requests_total", None] >= 4
    assert samples["process_resident_memory_bytes", None] > 0


def test_systemd_is_told_when_it_answers_and_when_it_stops(home: Path, project: Path, tmp_path: Path) -> None:
    place = tmp_path / "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(place))
        listening.settimeout(30)
        with serving(home, project=project, NOTIFY_SOCKET=str(place)) as server:
            assert listening.recv(100) == b"READY=1"
            server.stop()
            assert listening.recv(100) == b"STOPPING=1"


def test_print_shows_the_unit_and_changes_nothing(home: Path, project: Path) -> None:
    home.mkdir()
    found = flash(
        home, "server", "install", "--user", "--print", "--project", "project", "--port", "7999", cwd=project.parent
    )
    assert found.returncode == 0, found.stderr
    assert f"server --project {project} --port 7999" in found.stdout
    assert "Restart=on-failure" in found.stdout
    assert f"Environment=FLASH_HOME={home}" in found.stdout
    assert subprocess.run(["ls", str(home)], capture_output=True, check=True).stdout == b""
