"""What a client may not do: too much, too slowly, or in bytes that two servers could read differently."""

import dataclasses
import select
import socket

import pytest
from front_fixtures import HURRY, Served, get, post, serving

from flashmesh.gateway.front import FrontLimits

LEAN = pytest.mark.parametrize("path", ["/echo", "/app"], ids=["hot", "application"])


@pytest.fixture(scope="module")
def served():
    with serving(FrontLimits(max_body=1000, linger_s=0.1, sweep_s=0.05)) as served:
        yield served


@pytest.fixture(scope="module")
def hurried():
    with serving(HURRY) as served:
        yield served


def warmed(served: Served, path: str):
    """A connection that already belongs to the server that serves `path`."""
    client = served.connect()
    assert client.ask(get(path)).status == 200
    return client


def refused(client, status: int, code: str):
    answer = client.answer()
    assert (answer.status, answer.json["error"]) == (status, code), answer
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    assert client.is_ended()
    return answer.json["message"]


@LEAN
def test_more_than_64_headers_are_too_many(served: Served, path: str) -> None:
    assert warmed(served, path).ask(get(path, *[f"x-{n}: 1" for n in range(63)])).status == 200
    refused(warmed(served, path).send(get(path, *[f"x-{n}: 1" for n in range(64)])), 431, "HEADERS_TOO_LARGE")


@LEAN
def test_repeated_headers_count_too(served: Served, path: str) -> None:
    refused(warmed(served, path).send(get(path, *["x: 1"] * 64)), 431, "HEADERS_TOO_LARGE")


@LEAN
def test_a_head_beyond_32_kib_is_too_large(served: Served, path: str) -> None:
    assert warmed(served, path).ask(get(path, "x: " + "y" * 32_000)).status == 200
    refused(warmed(served, path).send(get(path, "x: " + "y" * 33_000)), 431, "HEADERS_TOO_LARGE")
    refused(warmed(served, path).send(get(path + "?" + "y" * 33_000)), 431, "HEADERS_TOO_LARGE")


@LEAN
def test_a_head_without_end_is_too_large(served: Served, path: str) -> None:
    client = warmed(served, path)
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nx: ".encode() + b"y" * 20_000).send(b"y" * 20_000)
    refused(client, 431, "HEADERS_TOO_LARGE")


@LEAN
def test_a_large_body_is_refused_before_it_comes(served: Served, path: str) -> None:
    assert warmed(served, path).ask(post(path, b"x" * 1000)).status == 200
    client = warmed(served, path).send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n".encode())
    message = refused(client, 413, "PAYLOAD_TOO_LARGE")
    assert "1000 bytes" in message
    assert "FLASH_MAX_BODY_BYTES" in message


def test_a_large_body_is_refused_for_the_application_on_the_first_request_too(served: Served) -> None:
    client = served.connect().send(b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n")
    refused(client, 413, "PAYLOAD_TOO_LARGE")


@LEAN
def test_chunks_beyond_the_limit_are_refused(served: Served, path: str) -> None:
    client = warmed(served, path)
    client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    client.send(b"200\r\n" + b"x" * 512 + b"\r\n").send(b"200\r\n" + b"x" * 512 + b"\r\n")
    refused(client, 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "uvicorn"])
@LEAN
def test_a_refusal_is_seen_although_the_client_goes_on_sending(path: str, lean: bool) -> None:
    """Ten megabytes, all of them before it reads; a reset would destroy the answer."""
    with serving(FrontLimits(max_body=1000, linger_s=0.2, sweep_s=0.05), lean=lean) as served:
        for _ in range(3):
            refused(served.connect().send(post(path, b"x" * 10_000_000)), 413, "PAYLOAD_TOO_LARGE")


@LEAN
def test_a_refusal_is_seen_by_a_client_that_sends_before_it_reads(served: Served, path: str) -> None:
    client = served.connect().send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n".encode())
    select.select([client.socket], [], [])  # the refusal is here
    client.send(b"x" * 100_000).send(b"x" * 100_000)
    refused(client, 413, "PAYLOAD_TOO_LARGE")


def test_a_refused_client_that_never_stops_sending_is_dropped() -> None:
    """It has `body_s`, as any body; a silent one goes sooner."""
    with serving(FrontLimits(max_body=1000, body_s=0.3, linger_s=0.2, sweep_s=0.05)) as served:
        client = served.connect().send(b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                client.send(b"x" * 1000)
        silent = served.connect().send(b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
        assert silent.answer().status == 413
        served.wait_until(lambda: served.server.connections == 0)


@LEAN
def test_pipelined_requests_do_not_count_as_one_head(served: Served, path: str) -> None:
    client = warmed(served, path).send(get(path) * 1000 + get(path)[:-2])
    client.send(b"\r\n")
    assert [client.answer().status for _ in range(1001)] == [200] * 1001


@pytest.mark.parametrize(
    "head", ["GET /about HTTP/1.1\nHost: a\n\n", "GET /about HTTP/1.1\r\nHost: a\n\n", "GET /\x00"]
)
def test_what_can_never_become_a_head_is_refused_at_once(served: Served, head: str) -> None:
    refused(served.connect().send(head.encode()), 400, "MALFORMED_REQUEST")


def test_chunks_of_nothing_but_framing_are_refused() -> None:
    with serving() as served:
        client = served.connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"1;" + b"x" * 100_000 + b"\r\n")
        refused(client, 400, "MALFORMED_REQUEST")


def test_a_refusal_waits_for_the_answers_before_it(served: Served) -> None:
    client = served.connect().send(get("/hold?first") + b"nonsense\r\n\r\n")
    served.wait_until(lambda: any(held.request.query == b"first" for held in served.site.held))
    served.answer_held(b"first")
    assert client.answer().body == b"first"
    refused(client, 400, "MALFORMED_REQUEST")


@LEAN
def test_a_head_that_trickles_runs_out_of_time(hurried: Served, path: str) -> None:
    client = warmed(hurried, path)
    refused(client.send(f"GET {path} HTTP/1.1\r\nHost:".encode()), 408, "REQUEST_TIMEOUT")


@LEAN
def test_a_body_that_trickles_runs_out_of_time(hurried: Served, path: str) -> None:
    client = warmed(hurried, path)
    client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc".encode())
    refused(client, 408, "REQUEST_TIMEOUT")


@LEAN
def test_an_idle_connection_is_closed(hurried: Served, path: str) -> None:
    client = warmed(hurried, path)
    assert client.is_ended()


def test_a_connection_that_says_nothing_is_closed(hurried: Served) -> None:
    assert hurried.connect().is_ended()


def test_a_connection_is_not_idle_since_before_it_came() -> None:
    """A server without connections does not wake: what time it is, it learns from the next one."""
    with serving(dataclasses.replace(HURRY, idle_s=0.5, sweep_s=0.02)) as served:
        assert served.connect().is_ended()
        served.wait_until(lambda: served.server.connections == 0 and served.loop.time() - served.server.now > 0.6)
        client = served.connect()
        served.wait_until(lambda: served.server.connections == 1)
        before = served.server.now
        served.wait_until(lambda: served.server.now > before)  # it has been looked at
        assert client.ask(get("/about")).status == 200


def test_a_request_that_is_being_served_has_no_time_limit_here(hurried: Served) -> None:
    client = hurried.connect().send(get("/hold?long"))
    other = hurried.connect()
    assert other.is_ended()  # idle for longer than every limit
    assert hurried.connect().is_ended()
    hurried.answer_held(b"long")
    assert client.answer().body == b"long"


def test_an_upload_on_uvicorns_connection_is_never_a_handlers() -> None:
    """It may be larger than what a handler should hold, were it only to refuse it."""
    with serving(FrontLimits(max_body=1000, uploads=(b"/echo",)), lean=False) as served:
        assert len(served.connect().ask(post("/echo", b"x" * 100_000)).json["body"]) == 100_000
        assert served.server.requests == 0


def test_a_client_that_does_not_read_is_dropped_in_time() -> None:
    with serving(dataclasses.replace(HURRY, idle_s=60)) as served:
        client = served.connect().send(get("/big?20000000"))
        served.wait_until(lambda: served.server.dropped == 1)
        served.wait_until(lambda: served.server.connections == 0)
        client.close()


def test_a_client_that_does_not_read_is_not_read_either() -> None:
    with serving(FrontLimits(max_unsent=1_000_000)) as served:
        client = served.connect().send(get("/big?20000000") + post("/echo", b"unread") * 50)
        served.wait_until(lambda: served.server.requests >= 1)
        assert served.server.requests == 1
        assert len(client.answer().body) == 20_000_000  # it reads after all, and gets everything
        assert [client.answer().body for _ in range(50)] == [b"unread"] * 50


def test_a_client_that_leaves_too_much_unread_is_dropped() -> None:
    with serving(FrontLimits(max_unsent=1_000_000)) as served:
        client = served.connect().send(get("/hold?a") + get("/hold?b"))
        served.wait_until(lambda: len(served.site.held) == 2)
        served.answer_held(b"a", b"x" * 20_000_000)
        served.answer_held(b"b", b"x")
        served.wait_until(lambda: served.server.connections == 0)
        assert served.server.dropped == 1
        client.close()


def test_connections_beyond_the_limit_are_turned_away() -> None:
    with serving(FrontLimits(max_connections=2, linger_s=0.1, sweep_s=0.05)) as served:
        first, second = served.connect(), served.connect()
        assert first.ask(get("/about")).status == 200
        assert second.ask(get("/app")).status == 200
        refused(served.connect(), 503, "OVERLOADED")
        assert served.server.turned_away == 1
        assert first.ask(get("/about")).status == 200
        first.close()
        served.wait_until(lambda: served.server.connections == 1)
        assert served.connect().ask(get("/about")).status == 200


CHUNKED = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
SMUGGLED = {
    "length and chunks": CHUNKED + "Content-Length: 4\r\n\r\n0\r\n\r\n",
    "length and chunks, other order": CHUNKED.replace("Host", "Content-Length: 4\r\nHost") + "\r\n0\r\n\r\n",
    "two lengths": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "the same length twice": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "a signed length": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
    "a negative length": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\nabcd",
    "a length in hex": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
    "an underscored length": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n",
    "an empty length": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    "an endless length": "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "a space before the colon": CHUNKED.replace("Encoding:", "Encoding :") + "\r\n0\r\n\r\n",
    "a tab before the colon": CHUNKED.replace("Encoding:", "Encoding\t:") + "\r\n0\r\n\r\n",
    "a vertical tab in the coding": CHUNKED.replace(" chunked", " \x0bchunked") + "\r\n0\r\n\r\n",
    "chunked twice": CHUNKED + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then identity": CHUNKED + "Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked not last": CHUNKED.replace("chunked", "chunked, gzip") + "\r\n0\r\n\r\n",
    "an empty coding": CHUNKED.replace("chunked", "") + "\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace("1.1", "1.0") + "\r\n0\r\n\r\n",
    "a folded header": "GET /about HTTP/1.1\r\nHost: a\r\nx: 1\r\n y: 2\r\n\r\n",
    "a folded coding": "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a first header that is folded": "GET /about HTTP/1.1\r\n Host: a\r\n\r\n",
    "a bare LF after the request line": "GET /about HTTP/1.1\nHost: a\r\n\r\n",
    "a bare LF after a header": "GET /about HTTP/1.1\r\nHost: a\nx: 1\r\n\r\n",
    "bare LFs only": "GET /about HTTP/1.1\nHost: a\n\n",
    "a bare LF before the end": "GET /about HTTP/1.1\r\nHost: a\r\n\n",
    "a bare CR in a header": "GET /about HTTP/1.1\r\nHost: a\r\nx: 1\ry: 2\r\n\r\n",
    "a bare CR after the request line": "GET /about HTTP/1.1\rHost: a\r\n\r\n",
    "a zero byte in a value": "GET /about HTTP/1.1\r\nHost: a\r\nx: 1\x002\r\n\r\n",
    "a zero byte in a name": "GET /about HTTP/1.1\r\nHost: a\r\nx\x00y: 1\r\n\r\n",
    "a zero byte in the path": "GET /ab\x00out HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control character in a value": "GET /about HTTP/1.1\r\nHost: a\r\nx: 1\x012\r\n\r\n",
    "a header without a name": "GET /about HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
    "a header without a colon": "GET /about HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n",
    "a name with a space": "GET /about HTTP/1.1\r\nHost: a\r\nx y: 1\r\n\r\n",
    "a name with brackets": "GET /about HTTP/1.1\r\nHost: a\r\nx(y): 1\r\n\r\n",
    "two hosts": "GET /about HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": "GET /about HTTP/1.1\r\nx: 1\r\n\r\n",
    "a space in the path": "GET /about x HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": "GET /about\r\n\r\n",
    "a strange protocol": "GET /about ICY/1.1\r\nHost: a\r\n\r\n",
    "a lower-case method": "get /about HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "a chunk size that is no number": CHUNKED + "\r\nzz\r\nabc\r\n0\r\n\r\n",
    "a signed chunk size": CHUNKED + "\r\n-3\r\nabc\r\n0\r\n\r\n",
    "a chunk size in 0x": CHUNKED + "\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk size that overflows": CHUNKED + "\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + "\r\n3\r\nabcd\r\n0\r\n\r\n",
    "a chunk size ended by LF": CHUNKED + "\r\n3\nabc\r\n0\r\n\r\n",
    "a chunk ended by LF": CHUNKED + "\r\n3\r\nabc\n0\r\n\r\n",
    "a chunk size behind a space": CHUNKED + "\r\n 3\r\nabc\r\n0\r\n\r\n",
    "a chunk size before a space": CHUNKED + "\r\n3 \r\nabc\r\n0\r\n\r\n",
    "a bare CR in a chunk extension": CHUNKED + "\r\n3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a bare LF in a chunk extension": CHUNKED + "\r\n3;a\nabc\r\n0\r\n\r\n",
    "an end of chunks in LF": CHUNKED + "\r\n3\r\nabc\r\n0\n\n",
    "the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}
OTHER_STATUS = {
    "chunked twice": {400, 501},
    "chunked, then identity": {400, 501},
    "the preface of HTTP/2": {400, 505},
    "HTTP/0.9": {505},
}
BEHIND = get("/echo?smuggled")


@pytest.mark.parametrize("name", SMUGGLED)
def test_what_two_servers_could_read_differently_is_refused(served: Served, name: str) -> None:
    client = served.connect().send(SMUGGLED[name].encode("latin-1") + BEHIND)
    answer = client.answer()
    assert answer.status in OTHER_STATUS.get(name, {400}), answer
    assert answer.headers["connection"] == "close"
    assert client.is_ended()
    assert not any(request.query == b"smuggled" for request in served.site.seen)


@pytest.mark.parametrize("name", SMUGGLED)
def test_it_is_refused_in_small_pieces_too(served: Served, name: str) -> None:
    client = served.connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = SMUGGLED[name].encode("latin-1") + BEHIND
    try:
        for start in range(0, len(data), 7):
            client.send(data[start : start + 7])
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before the end
    assert client.answer().status in OTHER_STATUS.get(name, {400})
    assert not any(request.query == b"smuggled" for request in served.site.seen)


@pytest.mark.parametrize("name", SMUGGLED)
def test_the_application_is_no_way_around(served: Served, name: str) -> None:
    client = warmed(served, "/app")
    before = len(served.site.lines)
    answer = client.send(SMUGGLED[name].encode("latin-1") + BEHIND).answer()
    assert answer.status in OTHER_STATUS.get(name, {400}), answer
    assert client.is_ended()
    assert "/echo" not in served.site.lines[before:] or "chunk" in name  # those reach it, and it is told to stop


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("BREW /about HTTP/1.1", 501),
        ("CONNECT a:80 HTTP/1.1", 501),
        ("GET /about HTTP/1.2", 505),
        ("GET /about HTTP/2.0", 505),
    ],
)
def test_what_is_not_implemented_says_so(served: Served, request_line: str, status: int) -> None:
    answer = served.connect().ask(f"{request_line}\r\nHost: a\r\n\r\n".encode())
    assert answer.status in (status, 400) if status == 505 else answer.status == status


def test_another_transfer_coding_is_not_implemented(served: Served) -> None:
    data = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    refused(served.connect().send(data), 501, "NOT_IMPLEMENTED")
