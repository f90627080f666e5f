"""The endpoint's own socket: HTTP calls of a worker, who gives up, who must wait, and what is refused."""

import json
import select
import socket
from typing import Any

import msgspec
import pytest
from worker_fixtures import (
    UnixHTTP,
    Worker,
    call,
    eventually,
    invoke,
    link_of,
    outcome,
    post,
    receive,
    session,
    started,
)

from flashmesh.wire import values
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.frames import MSGPACK, Credit, Error
from flashmesh.worker.calls.exchange import RecordReader
from flashmesh.worker.face.answers import ITEMS

SOURCE = """
    import asyncio, os, pathlib, time
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="own")
    folder = pathlib.Path(__file__).parent

    @remote(resource)
    def echo(x: int = 0):
        return x

    @remote(resource)
    def fail():
        raise ValueError("no")

    @remote(resource)
    def raw(data: bytes) -> bytes:
        return data[::-1]

    @remote(resource)
    def count(n: int):
        for i in range(n):
            yield {"i": i}

    @remote(resource)
    def count_to_failure(n: int):
        for i in range(n):
            yield i
        raise ValueError("over")

    @remote(resource)
    def patient():
        import socket
        socket.setdefaulttimeout(60)

    @remote(resource)
    def forever():
        try:
            while True:
                yield "x" * 1000
        finally:
            (folder / "closed").touch()

    @remote(resource)
    def note(name: str):
        (folder / name).touch()

    @remote(resource)
    def holds():
        (folder / "begun").touch()
        try:
            while not (folder / "go").exists():
                time.sleep(0.005)
        except BaseException as error:
            (folder / "ended").write_text(type(error).__name__)
            raise
        return "done"

    @remote(resource, execution_timeout_ms=30_000)
    def holds_briefly():
        (folder / "begun").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)

    @remote(resource)
    async def holds_async():
        (folder / "begun").touch()
        try:
            while not (folder / "go").exists():
                await asyncio.sleep(0.005)
        except BaseException as error:
            (folder / "ended").write_text(type(error).__name__)
            raise
        return "done"

    @remote(resource)
    class Counter:
        def __init__(self):
            self.n = 0
        def inc(self, by: int = 1):
            self.n += by
            return self.n
        def reset(self):
            self.n = 0
    """


def get(path: str, url: str) -> tuple[int, bytes]:
    connection = UnixHTTP(path)
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def send(path: str, request: bytes) -> socket.socket:
    """A connection on which a request was sent."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(20)
    peer.connect(path)
    peer.sendall(request)
    return peer


def request(function: str, *args: Any, accept: str = MSGPACK, **headers: str) -> bytes:
    """A call as our own peers send it."""
    body = encode_arguments(args, {})
    lines = [f"POST /{function}/run_sync HTTP/1.1", "Host: flash", f"Content-Type: {MSGPACK}", f"Accept: {accept}"]
    lines += [f"Content-Length: {len(body)}", *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_all(peer: socket.socket) -> tuple[int, bytes]:
    data = b""
    while piece := peer.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("url", ["/own.echo/run_sync", "/echo/runsync", "/own.echo/runsync"])
def test_a_call_is_answered_in_the_envelope(url: str) -> None:
    """Id or bare name, both spellings; the answer has an id, COMPLETED and the output."""
    with session() as here:
        worker = here.worker(SOURCE)
        status, headers, body = post(worker.spec.socket_path, url, {"input": {"x": 5}})
        told = json.loads(body)
        assert (status, told["status"], told["output"]) == (200, "COMPLETED", 5)
        assert told["id"] == headers["x-execution-id"]
        assert headers["connection"] == "close"
        assert headers["server-timing"].startswith("run;dur=")


def test_the_one_function_of_an_endpoint_needs_no_name() -> None:
    """/run_sync, /runsync and /invoke mean it; with several the answer lists them."""
    with session() as here:
        worker = here.worker(SOURCE, ["own.echo"])
        for url in ("/run_sync", "/runsync", "/invoke"):
            assert post(worker.spec.socket_path, url, {"input": {"function_name": "echo", "x": 1}})[0] == 200
    with session() as here:
        one = 'from flashmesh import Endpoint\n@Endpoint(name="own")\ndef f(x: int):\n    return x\n'
        worker = here.worker(one, ["own.f"])
        for url in ("/run_sync", "/runsync", "/invoke"):
            assert json.loads(post(worker.spec.socket_path, url, {"x": 3})[2])["output"] == 3


def test_the_body_selects_among_several_functions() -> None:
    """`function_name`, and `method` for a class; without either the ids are listed."""
    with session() as here:
        path = here.worker(SOURCE).spec.socket_path
        assert json.loads(post(path, "/run_sync", {"input": {"function_name": "echo", "x": 4}})[2])["output"] == 4
        assert json.loads(post(path, "/Counter/run_sync", {"input": {"method": "inc", "by": 2}})[2])["output"] == 2
        assert json.loads(post(path, "/Counter.inc/run_sync", {"input": {}})[2])["output"] == 3
        status, _, body = post(path, "/run_sync", {"input": {"x": 4}})
        assert status == 409
        assert "own.echo" in body.decode()


@pytest.mark.parametrize(
    ("url", "body", "status", "code"),
    [
        ("/fail/run_sync", {}, 500, "USER_ERROR"),
        ("/echo/run_sync", b"{nonsense", 400, "MALFORMED_REQUEST"),
        ("/echo/run_sync", {"input": {"x": "many"}}, 422, "VALIDATION_ERROR"),
        ("/absent/run_sync", {}, 404, "FUNCTION_NOT_FOUND"),
    ],
)
def test_failures_have_their_status_and_say_what_happened(url: str, body: Any, status: int, code: str) -> None:
    """User errors are 500 with type, message and traceback; what the caller did wrong is 4xx."""
    with session() as here:
        worker = here.worker(SOURCE)
        found, headers, answer = post(worker.spec.socket_path, url, body)
        told = json.loads(answer)
        assert (found, told["status"], told["error"]["code"]) == (status, "FAILED", code)
        assert ("x-flash-not-run" in headers) == (status != 500)
        if status == 500:
            assert told["error"]["type"] == "ValueError"
            assert "own.py" in told["error"]["traceback"]


def test_unknown_paths_and_verbs_are_refused() -> None:
    """404 says what there is, 405 which verb to use."""
    with session() as here:
        path = here.worker(SOURCE).spec.socket_path
        assert post(path, "/nowhere", {})[0] == 404
        assert get(path, "/echo/run_sync")[0] == 405
        assert post(path, "/ping", {})[0] == 404


def test_ping_health_and_metrics_answer() -> None:
    """The worker tells who it is and what it did."""
    with session() as here:
        worker = here.worker(SOURCE)
        path = worker.spec.socket_path
        assert json.loads(get(path, "/ping")[1]) == {"status": "healthy"}
        post(path, "/fail/run_sync", {})
        health = json.loads(get(path, "/health")[1])
        assert (health["endpoint"], health["build"]) == ("own", worker.spec.build)
        metrics = get(path, "/metrics")[1].decode()
        assert "flash_worker_calls_total" in metrics
        assert next(line for line in metrics.splitlines() if line.startswith("flash_worker_failures_total")).endswith(
            " 1"
        )


def test_raw_bytes_and_msgpack_travel_as_they_are() -> None:
    """An octet-stream body is the bytes parameter, a bytes result is raw when asked for; msgpack is the bare value."""
    with session() as here:
        path = here.worker(SOURCE).spec.socket_path
        octets = "application/octet-stream"
        status, headers, body = post(path, "/raw/run_sync", b"\x00abc", Content_Type=octets, Accept=octets)
        assert (status, headers["content-type"], body) == (200, octets, b"cba\x00")
        _, headers, body = post(path, "/echo/run_sync", {"x": 2}, Accept=MSGPACK)
        assert (headers["content-type"], msgspec.msgpack.decode(body)) == (MSGPACK, 2)


def test_a_generator_answers_a_list_or_streams_events() -> None:
    """`Accept: text/event-stream` streams: one event per item, an end, or the error where it happened."""
    with session() as here:
        path = here.worker(SOURCE).spec.socket_path
        assert json.loads(post(path, "/count/run_sync", {"n": 2})[2])["output"] == [{"i": 0}, {"i": 1}]
        _, headers, body = post(path, "/count/run_sync", {"n": 2}, Accept="text/event-stream")
        assert headers["content-type"] == "text/event-stream"
        assert body == b'data: {"i":0}\n\ndata: {"i":1}\n\nevent: end\ndata: {}\n\n'
        body = post(path, "/count_to_failure/run_sync", {"n": 1}, Accept="text/event-stream")[2]
        assert body.startswith(b"data: 0\n\nevent: error\n")
        assert b"over" in body
        status, _, body = post(path, "/count_to_failure/run_sync", {"n": 0}, Accept="text/event-stream")
        assert (status, json.loads(body)["error"]["message"]) == (500, "over")
        assert post(path, "/echo/run_sync", {"x": 1}, Accept="text/event-stream")[2].startswith(
            b"data: 1\n\nevent: end"
        )


def test_a_peer_gets_items_as_records() -> None:
    """Items, then an end that a cut connection would lack."""
    with session() as here:
        path = here.worker(SOURCE).spec.socket_path
        with send(path, request("own.count", 70, accept=ITEMS)) as peer:
            status, body = read_all(peer)
        records = list(RecordReader().feed(body))
        assert status == 200
        assert [values.decode(data, MSGPACK)["i"] for kind, data in records if kind == b"I"] == list(range(70))
        assert records[-1] == (b"E", b"")


def test_a_stream_waits_for_a_slow_reader_and_ends_with_a_lost_one() -> None:
    """An endless generator does not fill the worker's memory, and is closed when nobody reads it any more."""
    with session() as here:
        worker = here.worker(SOURCE)
        with send(worker.spec.socket_path, request("own.forever", accept=ITEMS)) as peer:
            assert peer.recv(1000)
            invoke(worker, "own.echo", 1)
            assert receive(worker, Error).ran is False  # the slot is held; the worker answers that at once
        eventually((here.folder / "closed").exists)
        eventually(lambda: worker.record.head().free == 1)
        assert call(worker, "own.echo", 1, execution="e2") == 1


def test_a_peer_call_and_a_link_call_share_the_slots() -> None:
    """While a peer's call runs the session knows that nothing is free, and afterwards that there is."""
    with session() as here:
        worker = here.worker(SOURCE)
        with send(worker.spec.socket_path, request("own.holds")) as peer:
            assert receive(worker, Credit).free == 0
            eventually((here.folder / "begun").exists)
            (here.folder / "go").touch()
            assert read_all(peer)[0] == 200
            assert receive(worker, Credit).free == 1


def test_user_code_that_sets_a_default_timeout_does_not_make_the_face_wait() -> None:
    """A connection without a request yet holds a slot, not the loop: the link is still heard."""
    with session() as here:
        worker = here.worker(SOURCE)
        call(worker, "own.patient", execution="e1")
        with send(worker.spec.socket_path, b"") as peer:
            assert eventually(lambda: worker.record.head().free == 0)
            invoke(worker, "own.echo", 1, execution="e2")
            assert receive(worker, Error, execution="e2").code == "BUSY"
            peer.sendall(request("own.echo", 3))
            assert read_all(peer) == (200, b"\x03")


def test_a_worker_accepts_only_while_it_has_a_free_slot() -> None:
    """While its only slot is taken connections wait in the backlog, for whoever is free first."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, "own.holds_async")
        assert started(worker)
        with send(worker.spec.socket_path, request("own.echo", 3)) as peer:
            assert not select.select([peer], [], [], 0.2)[0]
            (here.folder / "go").touch()
            assert outcome(worker) == "done"
            assert read_all(peer) == (200, b"\x03")


def test_a_call_given_up_before_it_began_never_runs() -> None:
    """The caller sent its request into the backlog and went away."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, "own.holds_async")
        assert started(worker)
        send(worker.spec.socket_path, request("own.note", "abandoned")).close()
        with send(worker.spec.socket_path, request("own.note", "kept")) as peer:
            (here.folder / "go").touch()
            assert read_all(peer)[0] == 200
        assert (here.folder / "kept").exists()
        assert not (here.folder / "abandoned").exists()


@pytest.mark.parametrize(("function", "error"), [("own.holds", "Cancelled"), ("own.holds_async", "CancelledError")])
def test_a_caller_that_hangs_up_cancels_its_call(function: str, error: str) -> None:
    """Synchronous bodies too, which leave the loop no turn to notice."""
    with session() as here:
        worker = here.worker(SOURCE)
        peer = send(worker.spec.socket_path, request(function))
        eventually((here.folder / "begun").exists)
        peer.close()
        eventually((here.folder / "ended").exists)
        assert eventually(lambda: (here.folder / "ended").read_text()) == error
        assert call(worker, "own.echo", 1) == 1


def test_a_re_entrant_call_is_taken_over_the_limit() -> None:
    """It comes by the second socket while the only slot is held by the call that waits for it."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, "own.holds_async")
        assert started(worker)
        with send(worker.spec.reentrant_path, request("own.echo", 3, X_Flash_Chain="own,other")) as peer:
            assert read_all(peer) == (200, b"\x03")
        (here.folder / "go").touch()
        assert outcome(worker) == "done"


def test_a_chain_that_is_too_long_is_a_cycle() -> None:
    """508 names the endpoints it went through."""
    with session() as here:
        worker = here.worker(SOURCE)
        chain = ",".join("abcdefghi")
        status, _, body = post(worker.spec.socket_path, "/echo/run_sync", {"x": 1}, X_Flash_Chain=chain)
        assert status == 508
        assert "a → b → c" in json.loads(body)["error"]["message"]


def test_a_call_carries_its_deadline_to_the_record() -> None:
    """Remaining milliseconds become the moment the template enforces, and the template is told."""
    with session() as here:
        worker = here.worker(SOURCE)
        with send(worker.spec.socket_path, request("own.holds", X_Flash_Deadline_Ms="60000")) as peer:
            eventually((here.folder / "begun").exists)
            running = worker.record.running()[0]
            assert 0 < running.deadline_ns - running.started_ns <= 60_000_000_000
            (here.folder / "go").touch()
            assert read_all(peer)[0] == 200


def test_a_call_without_a_deadline_has_the_limit_its_function_declares() -> None:
    """A peer that gives none, or a longer one, does not lift the function's own."""
    with session() as here:
        worker = here.worker(SOURCE)
        for deadline in ({}, {"X_Flash_Deadline_Ms": "90000"}, {"X_Flash_Deadline_Ms": "20000"}):
            for mark in ("begun", "go"):
                (here.folder / mark).unlink(missing_ok=True)
            with send(worker.spec.socket_path, request("own.holds_briefly", **deadline)) as peer:
                eventually((here.folder / "begun").exists)
                running = worker.record.running()[0]
                limit_s = (running.deadline_ns - running.started_ns) / 1e9
                assert (19 < limit_s <= 20) if "20000" in deadline.values() else (29 < limit_s <= 30)
                (here.folder / "go").touch()
                assert read_all(peer)[0] == 200


# --- limits ---


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /echo/run_sync HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(70)) + b"\r\n", 431),
        (b"POST /echo/run_sync HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"POST /echo/run_sync HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /echo/run_sync HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (b"POST /echo/run_sync HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"GET /echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"CONNECT host:1 HTTP/1.1\r\nHost: host\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /echo/run_sync HTTP/1.1\r\nX-Flash-Deadline-Ms: soon\r\nContent-Length: 2\r\n\r\n{}", 400),
    ],
)
def test_requests_beyond_the_limits_are_refused(head: bytes, status: int) -> None:
    """Each limit has its status, and the worker goes on."""
    with session() as here:
        worker = here.worker(SOURCE)
        with send(worker.spec.socket_path, head) as peer:
            assert read_all(peer)[0] == status
        assert call(worker, "own.echo", 1) == 1


def test_a_body_beyond_the_limit_is_refused_with_the_limit() -> None:
    """FLASH_MAX_BODY_BYTES, said in the answer; also when the length was not announced."""
    with session() as here, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASH_MAX_BODY_BYTES", "1000")
        worker = here.worker(SOURCE)
        status, _, body = post(worker.spec.socket_path, "/raw/run_sync", b"x" * 1001)
        assert (status, b"1000 bytes" in body) == (413, True)
        chunk = (
            b"POST /raw/run_sync HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5dc\r\n" + b"x" * 1500 + b"\r\n0\r\n\r\n"
        )
        with send(worker.spec.socket_path, chunk) as peer:
            assert read_all(peer)[0] == 413


def test_a_request_in_pieces_is_put_together() -> None:
    """Head and body may come byte by byte."""
    with session() as here:
        worker = here.worker(SOURCE)
        data = request("own.echo", 7)
        with send(worker.spec.socket_path, b"") as peer:
            for at in range(0, len(data), 7):
                peer.sendall(data[at : at + 7])
            assert read_all(peer) == (200, b"\x07")


def test_a_large_body_and_a_large_answer_pass() -> None:
    """More than a socket's buffer, both ways."""
    with session() as here:
        worker: Worker = here.worker(SOURCE)
        octets = "application/octet-stream"
        data = bytes(range(256)) * 16_384
        status, _, body = post(worker.spec.socket_path, "/raw/run_sync", data, Content_Type=octets, Accept=octets)
        assert (status, body == data[::-1]) == (200, True)
        assert link_of(worker) is not None
