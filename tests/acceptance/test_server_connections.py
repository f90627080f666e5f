"""A real `flash server` and clients that connect in thousands, say nothing, or say it too slowly."""

import contextlib
import resource
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_server import serving

ECHO = """\
from flashmesh import CpuLiveServerless, remote


@remote(CpuLiveServerless(name="echo", workersMax=1))
def echo(x):
    return x
"""
HEAD = b"POST /v1/functions/echo:invoke HTTP/1.1\r\nHost: localhost\r\n"
CALL = HEAD + b'Content-Type: application/json\r\nContent-Length: 11\r\n\r\n{"input":1}'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "echo.py").write_text(ECHO)
    return root


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """This process holds the other ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Clients:
    """Connections that this test holds open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    def connect(self, said: bytes = b"") -> socket.socket:
        made = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=30))
        if said:
            made.sendall(said)
        return made


def call(connection: socket.socket) -> bytes:
    """The status of one call over a connection that is kept."""
    connection.sendall(CALL)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += received(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += received(connection)
    return head[9:12]


def received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the server closed the connection"
    return data


def answers(connections: list[socket.socket]) -> list[bytes]:
    """The first bytes that came on each, empty for those that were closed or reset."""
    found = []
    for connection in connections:
        try:
            found.append(connection.recv(65536))
        except ConnectionError:
            found.append(b"")
    return found


def trickle_until_closed(connections: list[socket.socket]) -> None:
    """Send a byte on each, again and again, until the server has said something on all of them or closed them."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(timeout=0.1):
                selector.unregister(key.fileobj)
            for key in selector.get_map().values():
                with contextlib.suppress(ConnectionError):
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.sendall(b"a")


def test_thousands_of_silent_connections_and_hundreds_that_trickle_hold_no_call_up(tmp_path: Path, project: Path):
    """2000 say nothing, 500 send a byte now and then; the latter are told that their time is over."""
    limits = {"FLASH_SERVER_HEAD_TIMEOUT": "1s", "FLASH_SERVER_BODY_TIMEOUT": "1s"}
    with serving(project, home=tmp_path / "home", **limits) as server, Clients(server.port) as clients:
        caller = clients.connect()
        assert call(caller) == b"200"
        before_mb = server.resident_mb()
        silent = [clients.connect() for _ in range(2000)]
        slow = [clients.connect(HEAD + b"x: ") for _ in range(250)]
        slow += [clients.connect(HEAD + b"Content-Length: 1000\r\n\r\n") for _ in range(250)]
        assert [call(caller) for _ in range(50)] == [b"200"] * 50
        assert server.resident_mb() - before_mb < 40, "a connection costs too much memory"
        trickle_until_closed(slow)
        assert {answer[9:12] for answer in answers(slow)} == {b"408"}
        assert [call(caller) for _ in range(50)] == [b"200"] * 50
        assert call(silent[-1]) == b"200", "a connection that was silent until now is as good as any"


def test_clients_never_get_the_servers_last_open_files(tmp_path: Path, project: Path):
    """Beyond the limit they are told so; who is connected goes on calling, also with payloads that need a file."""
    with serving(project, home=tmp_path / "home", open_files=600) as server, Clients(server.port) as clients:
        caller = clients.connect()
        assert call(caller) == b"200"
        with Clients(server.port) as crowd:
            beyond = [crowd.connect(b"G") for _ in range(1000)][-700:]
            told = answers(beyond[:200])
            assert {answer[9:12] for answer in told} <= {b"503", b""}
            assert any(b"OVERLOADED" in answer for answer in told)
            assert call(caller) == b"200"
            large = HEAD.replace(b":invoke", b":enqueue") + b"Content-Length: 200012\r\n\r\n"
            caller.sendall(large + b'{"input":"' + b"x" * 200_000 + b'"}')
            answer = caller.recv(65536)
            assert answer[9:12] == b"202", answer
            used_s = server.used_cpu_s()
            assert [call(caller) for _ in range(10)] == [b"200"] * 10
            assert server.used_cpu_s() - used_s < 1, "it spins"
        server.until(lambda: server.invoke("echo", {"x": 1})[0] == 200)
    assert "At most 200 connections at once, not 10000" in server.log.read_text()


def test_a_server_without_any_file_left_recovers_when_clients_go(tmp_path: Path, project: Path):
    """Its limit is so low that even what it keeps for itself runs out."""
    with serving(project, home=tmp_path / "home", open_files=60) as server:
        assert server.invoke("echo", {"x": 1})[0] == 200
        with Clients(server.port) as crowd:
            held = [crowd.connect() for _ in range(300)]
            used_s = server.used_cpu_s()
            assert any(answer == b"" for answer in answers(held[-20:]))
            assert server.used_cpu_s() - used_s < 1, "it spins"
        server.until(lambda: server.invoke("echo", {"x": 1})[0] == 200)
