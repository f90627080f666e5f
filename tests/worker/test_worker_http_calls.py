"""Calls over HTTP: what an answer means, and how connections are kept."""

import asyncio
import http.server
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import EndpointUnreachable, QueueFull, RemoteError, ValidationError
from flashmesh.gateway.access.certificates import AUTHORITY_FILE, own_certificate, server_ssl_context
from flashmesh.routing.addresses import Address, Rules, read_address
from flashmesh.routing.connecting import client_context
from flashmesh.worker.calls.events import EventReader
from flashmesh.worker.calls.exchange import Response, exchange, exchange_blocking, pieces, pieces_blocking
from flashmesh.worker.calls.lb_call import LineReader, RouteFailed, failure_of
from flashmesh.worker.calls.network import Network
from flashmesh.worker.calls.peer_call import Moved
from flashmesh.worker.calls.queue_call import failure_of as failed_job


def answer(status: int, body: Any, *, content_type: str = "application/json") -> tuple[Response, bytes]:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = Response()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n\r\n"
    response.feed(head.encode() + data)
    return response, response.take()


def test_an_error_of_a_route_is_raised_as_what_it_was() -> None:
    """Its type where this process knows it, and the remote traceback."""
    told = {"error": "'x'", "error_type": "KeyError", "code": "USER_ERROR", "traceback": "Traceback: in page"}
    raised = failure_of(*answer(500, told))
    assert isinstance(raised, KeyError)
    assert raised.remote_traceback == "Traceback: in page"  # type: ignore[attr-defined]
    unknown = failure_of(*answer(500, {**told, "error_type": "shop.OutOfStock"}))
    assert isinstance(unknown, RemoteError) and unknown.type_name == "shop.OutOfStock"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, {"detail": "no such item"}, RouteFailed),
        (404, {"error": "There is nothing at GET /x.", "code": "ROUTE_NOT_FOUND"}, Moved),
        (410, b"gone", RouteFailed),
        (422, {"detail": "n is missing"}, ValidationError),
        (429, {}, QueueFull),
        (502, b"<html>", RouteFailed),
    ],
)
def test_what_a_routes_status_means(status: int, body: Any, kind: type[Exception]) -> None:
    """An endpoint of ours says when it has no such route; any other 404 may be the function's own answer."""
    assert type(failure_of(*answer(status, body))) is kind


@pytest.mark.parametrize(
    ("document", "kind", "message"),
    [
        ({"status": "FAILED", "error": "boom"}, RemoteError, "boom"),
        (
            {"status": "FAILED", "error": '{"error_type": "<class \'ValueError\'>", "error_message": "bad"}'},
            ValueError,
            "bad",
        ),
        ({"error": {"type": "KeyError", "message": "k", "traceback": "T"}}, KeyError, "k"),
        ({"error": "full", "code": "QUEUE_FULL"}, QueueFull, "full"),
        ({"status": "TIMED_OUT"}, RemoteError, "TIMED_OUT"),
    ],
)
def test_a_failed_jobs_answer_is_understood_in_every_form(
    document: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Ours, RunPod's, and what RunPod's workers pack into text."""
    raised = failed_job(document)
    if kind is RemoteError and document.get("error") == "boom":
        assert isinstance(raised, RuntimeError | RemoteError)
    else:
        assert isinstance(raised, kind | RuntimeError)
    assert message in str(raised)


@given(st.lists(st.tuples(st.sampled_from(["", "end"]), st.text("ab \u00e4", max_size=5)), max_size=6), st.data())
def test_events_are_the_same_wherever_the_stream_is_cut(events: list[tuple[str, str]], data: st.DataObject) -> None:
    text = b":\n\n" + b"".join(
        (f"event: {name}\n" if name else "").encode() + f"data: {value}\n\n".encode() for name, value in events
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reader, found = EventReader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += list(reader.feed(text[begin:end]))
    assert found == [(name, value.encode()) for name, value in events]


def test_items_of_a_route_come_as_events_lines_or_text() -> None:
    def read(content_type: str, *parts: bytes) -> list[Any]:
        reader = LineReader(failure_of, lambda item: item)
        response, _ = answer(200, b"", content_type=content_type)
        return [item for part in parts for item in reader.feed(response, part)]

    assert read("text/event-stream", b'data: {"a":1}\n', b"\ndata: 2\n\n") == [{"a": 1}, 2]
    assert read("application/x-ndjson", b'{"a":', b"1}\n2\n") == [{"a": 1}, 2]
    assert read("text/plain", b"one", b"two") == ["one", "two"]
    assert read("application/octet-stream", b"\x00") == [b"\x00"]


# --- connections ---


class _Keeping(http.server.BaseHTTPRequestHandler):
    """Keeps its connections open; `/close` does not, `/early` closes after it promised to keep."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.client_address[1]}".encode()
        if self.path == "/hint":
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        self.send_response(302 if self.path == "/redirect" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "http://127.0.0.1:9/")
        if self.path == "/close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/early":
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def keeping(folder: Path | None = None) -> Iterator[Address]:
    """`folder`: for a certificate; then it speaks TLS."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Keeping)
    server.daemon_threads = True
    if folder is not None:
        certificate = own_certificate(folder, ["localhost"])
        context = server_ssl_context(certificate.cert, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield read_address(f"http{'s' if folder else ''}://localhost:{server.server_port}", Rules())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_that_is_left_open_carries_the_next_call(tls: bool, tmp_path: Path) -> None:
    """In a loop and blocking; one that is closed is not used again."""
    with keeping(tmp_path if tls else None) as address:
        network = Network(make_context=lambda: client_context(str(tmp_path / AUTHORITY_FILE)))

        async def main() -> None:
            one, two, three, four = [
                (await exchange(address, get(path), seconds=20, network=network))[1]
                for path in ("/", "/close", "/", "/")
            ]
            assert one == two != three == four
            parts = [data async for _, data in pieces(address, get("/"), seconds=20, network=network)]
            assert b"".join(parts) == four

        asyncio.run(main())
        asyncio.run(main())  # connections ended with their loop
        ports = [
            exchange_blocking(address, get(path), seconds=20, network=network)[1] for path in ("/", "/close", "/", "/")
        ]
        assert ports[0] == ports[1] != ports[2] == ports[3]
        parts = [data for _, data in pieces_blocking(address, get("/"), seconds=20, network=network)]
        assert b"".join(parts) == ports[3]
        network.close()


def test_a_connection_that_the_other_side_closed_is_not_used() -> None:
    """Though it had promised to keep it: what is known to be closed carries no call."""
    with keeping() as address:
        network = Network()
        for _ in range(3):
            assert exchange_blocking(address, get("/early"), seconds=20, network=network)[0].status == 200
            ((_, resting),) = network._sockets[address.origin]
            assert select.select([resting], [], [], 20)[0]  # the end of the connection is here

        async def main() -> None:
            for _ in range(3):
                response, _ = await exchange(address, get("/early"), seconds=20, network=network)
                assert response.status == 200
                (pool,) = network._loops.values()
                (resting,) = pool._resting[address.origin]
                while resting.is_usable:  # noqa: ASYNC110 - a transport tells nobody that it has noticed
                    await asyncio.sleep(0)

        asyncio.run(main())
        network.close()


def test_many_calls_at_once_have_a_connection_each() -> None:
    with keeping() as address:
        network = Network()

        async def main() -> None:
            answers = await asyncio.gather(
                *(exchange(address, get("/"), seconds=20, network=network) for _ in range(8))
            )
            assert len({body for _, body in answers}) == 8

        asyncio.run(main())


def test_words_in_between_heads_without_body_and_redirects() -> None:
    with keeping() as address:
        network = Network()
        response, body = exchange_blocking(address, get("/hint"), seconds=20, network=network)
        assert (response.status, body != b"", "link" in response.headers) == (200, True, False)
        head, body = exchange_blocking(address, get("/", "HEAD"), seconds=20, network=network)
        assert (head.status, body) == (200, b"")
        assert exchange_blocking(address, get("/redirect"), seconds=20, network=network)[0].status == 302
        network.close()


def test_an_address_where_nobody_listens_is_not_reached() -> None:
    gone = read_address("http://127.0.0.1:9", Rules())
    with pytest.raises(EndpointUnreachable, match="127"):
        exchange_blocking(gone, get("/"), seconds=5, network=Network())
    with pytest.raises(EndpointUnreachable):
        asyncio.run(exchange(gone, get("/"), seconds=5, network=Network()))
