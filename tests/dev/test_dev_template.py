import http.client
import signal
import socket
import time
from pathlib import Path

import pytest
from dev_template_process import (
    PLAIN_SERVER,
    Hammer,
    RunningTemplate,
    alive,
    children_of,
    kill,
    running_template,
    wait_until,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def answer_of(client: socket.socket) -> bytes:
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.read()


def server(generation: str) -> str:
    return PLAIN_SERVER.format(generation=generation)


def test_a_served_file_answers_and_ready_means_that_it_does(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        assert template.serve(server("one"))["event"] == "ready"
        assert template.get()[1].startswith("one ")


def test_twenty_edits_under_load_fail_no_request_and_show_no_old_code_after_ready(tmp_path: Path) -> None:
    """Keep-alive connections and new ones alike; what is asked after `ready` is answered by new code."""
    with running_template(tmp_path) as template:
        template.serve(server("0"))
        ready_at = {0: time.monotonic()}
        hammers = [Hammer(template.port, keep_alive=keep) for keep in (True, True, False)]
        hammers.append(Hammer(template.port, keep_alive=True, path="/slow"))
        for hammer in hammers:
            hammer.start()
        for generation in range(1, 21):
            assert template.serve(server(str(generation)))["event"] == "ready"
            ready_at[generation] = time.monotonic()
        seen = [len(hammer.answers) for hammer in hammers]
        wait_until(lambda: all(len(hammer.answers) > before + 2 for hammer, before in zip(hammers, seen, strict=True)))
        for hammer in hammers:
            hammer.ended.set()
        for hammer in hammers:
            hammer.join(30)
            assert hammer.failures == []
            assert len(hammer.answers) >= 3
            for asked, _, text in hammer.answers:
                newest = max(generation for generation, at in ready_at.items() if at < asked)
                assert int(text.split()[0]) >= newest


def test_an_idle_connection_moves_to_the_new_code(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("old"))
        connection = http.client.HTTPConnection("127.0.0.1", template.port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"old")
        local = connection.sock.getsockname()
        template.serve(server("new"))
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"new")
        assert connection.sock.getsockname() == local
        connection.close()


def test_a_request_whose_headers_have_half_arrived_moves_to_the_new_code(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("old"))
        with socket.create_connection(("127.0.0.1", template.port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            template.get()  # the old child has read what was sent before this
            template.serve(server("new"))
            client.sendall(b"alhost\r\nX-A: b\r\n\r\n")
            assert answer_of(client).startswith(b"new ")


def test_a_running_request_finishes_on_the_old_code_and_its_connection_moves_on(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("old"))
        connection = http.client.HTTPConnection("127.0.0.1", template.port, timeout=10)
        connection.request("GET", "/slow")
        template.get()
        template.serve(server("new"))
        assert connection.getresponse().read().startswith(b"old")
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"new")
        connection.close()
        wait_until(lambda: len(children_of(template.pid)) == 1)


def test_code_that_blocks_its_server_does_not_hold_up_the_next(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("old"))
        with socket.create_connection(("127.0.0.1", template.port), timeout=10) as client:
            client.sendall(b"GET /block HTTP/1.1\r\nHost: localhost\r\n\r\n")
            template.serve(server("new"))  # returns although the old one is not done
            (tmp_path / "go").touch()
            assert answer_of(client).startswith(b"old ")


def test_a_file_that_cannot_be_loaded_is_reported_and_the_old_one_goes_on(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("good"))
        failed = template.serve("import nothing_of_that_name\n")
        assert failed["event"] == "failed"
        assert "nothing_of_that_name" in failed["reason"]
        assert failed["line"] == 1
        assert template.get()[1].startswith("good")
        template.serve(server("better"))
        assert template.get()[1].startswith("better")


def test_a_server_that_crashes_is_replaced_at_once(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("one"))
        with pytest.raises((OSError, http.client.HTTPException)):
            template.get("/crash")
        assert template.get()[1].startswith("one")
        assert template.wait(lambda event: event["event"] == "problem")["reason"].startswith("the server process ended")


def test_the_newest_of_several_quick_edits_wins(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        for name in ("one", "two"):
            template.write_server(server(name))
            template.process.serve()
        template.serve(server("three"))
        assert template.get()[1].startswith("three")
        wait_until(lambda: len(children_of(template.pid)) == 1)


def test_when_the_session_dies_nothing_stays_not_even_what_user_code_started(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("one"))
        template.get("/child")
        child = children_of(template.pid)[0]
        grandchild = children_of(child)[0]
        template.end_session()
        wait_until(lambda: not any(alive(pid) for pid in (template.pid, child, grandchild)), 2)


def test_a_killed_template_takes_its_server_along(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("one"))
        child = children_of(template.pid)[0]
        kill(template.pid)
        wait_until(lambda: not alive(child), 2)


def test_closing_finishes_the_running_request(tmp_path: Path) -> None:
    template = RunningTemplate(tmp_path)
    try:
        template.serve(server("one"))
        connection = http.client.HTTPConnection("127.0.0.1", template.port, timeout=10)
        connection.request("GET", "/slow")
        template.get()
        template.process.close(5)
        assert connection.getresponse().read().startswith(b"one")
        connection.close()
        assert template.process.process.wait(10) == 0
    finally:
        template.stop()


def test_sigterm_drains_and_ctrl_c_is_left_to_the_session(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(server("one"))
        child = children_of(template.pid)[0]
        kill(template.pid, signal.SIGINT)
        kill(child, signal.SIGINT)
        assert template.get()[1].startswith("one")
        kill(template.pid, signal.SIGTERM)
        assert template.process.process.wait(10) == 0
        assert not alive(child)


def test_without_fork_servers_are_started_anew_and_take_over_alike(tmp_path: Path) -> None:
    with running_template(tmp_path, options={"spawn": True}) as template:
        template.serve(server("old"))
        connection = http.client.HTTPConnection("127.0.0.1", template.port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"old")
        template.serve(server("new"))
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"new")
        connection.close()
        child = children_of(template.pid)[0]
    wait_until(lambda: not alive(child), 5)


WEBSOCKET_SERVER = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        return
    await receive()
    await send({"type": scope["type"] + ".startup.complete"})
    await receive()
    await send({"type": scope["type"] + ".shutdown.complete"})
"""


def test_a_websocket_is_served_and_closed_as_restarting_when_its_code_changes(tmp_path: Path) -> None:
    with running_template(tmp_path) as template:
        template.serve(WEBSOCKET_SERVER)
        with connect(f"ws://127.0.0.1:{template.port}/") as socket_:
            socket_.send("hello")
            assert socket_.recv(10) == "HELLO"
            template.serve(server("new"))
            with pytest.raises(ConnectionClosed):
                socket_.recv(10)
            assert socket_.close_code == 1012
        wait_until(lambda: len(children_of(template.pid)) == 1)
