"""Requests on their way to an endpoint, with an endpoint that does what the test wants."""

import json
import threading

import pytest
from front_fixtures import HURRY, get, post
from lb_fixtures import OK, WEB, port

from flashmesh.functions.errors import EndpointUnavailable
from flashmesh.gateway.http import Answer
from flashmesh.gateway.lb.directory import LbServed
from flashmesh.kit.ids import EndpointName

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"


@pytest.mark.parametrize("lean", [True, False])
def test_a_connection_may_mean_something_else_with_every_request(lean: bool) -> None:
    """An endpoint, a hot route, the application, and the endpoint again, by path and by host."""
    with port(lean=lean) as site:
        client = site.connect()
        for _ in range(2):
            client.send(get("/lb/web/one"))
            assert site.far.answer()[0] == "GET /one HTTP/1.1"
            assert client.answer().body == b"ok"
            if lean:
                assert client.ask(post("/echo", b"hot")).body == b"hot"
            assert client.ask(get("/app")).json["app"] is True
            client.send(get("/two").replace(b"localhost", b"web.localhost"))
            assert site.far.answer()[0] == "GET /two HTTP/1.1"
            assert client.answer().body == b"ok"


def test_requests_that_come_at_once_are_answered_in_their_order() -> None:
    with port() as site:
        client = site.connect()
        client.send(post("/echo", b"1") + get("/lb/web/2") + post("/lb/web/3", b"abc") + post("/echo", b"4"))
        assert client.answer().body == b"1"
        site.far.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2")
        call = site.far.take()
        site.far.head(call)
        assert call.rest == b"abc"
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n3")
        assert [client.answer().body for _ in range(3)] == [b"2", b"3", b"4"]


def test_an_upload_passes_as_its_bytes_came_trailers_included() -> None:
    body = b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 6\r\n\r\n"
    with port() as site:
        client = site.connect()
        client.send(get("/lb/web/up", "Transfer-Encoding: chunked", "Trailer: X-Sum").replace(b"GET", b"POST"))
        call = site.far.take()
        _, headers = site.far.head(call)
        assert headers["transfer-encoding"] == "chunked" and headers["trailer"] == "X-Sum"
        client.send(body)
        while len(call.rest) < len(body):
            call._read()
        assert call.rest == body
        call.send(CHUNKED + b"3\r\nyes\r\n0\r\nx-sum: 3\r\n\r\n")
        assert client.answer().headers["trailer"] == "x-sum"
        while not client.rest.endswith(b"x-sum: 3\r\n\r\n"):
            client._read()
        assert client.rest == b"3\r\nyes\r\n0\r\nx-sum: 3\r\n\r\n"
        client.rest = b""
        assert client.ask(post("/echo", b"still here")).body == b"still here"


def test_a_client_that_waits_for_it_is_told_to_continue_by_the_endpoint() -> None:
    with port() as site:
        client = site.connect()
        client.send(b"POST /lb/web/up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        call = site.far.take()
        assert site.far.head(call)[1]["expect"] == "100-continue"
        call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert client.answer().status == 100
        client.send(b"hi")
        call._read()
        assert call.rest == b"hi"
        call.send(OK)
        assert client.answer().body == b"ok"


def test_a_websocket_is_a_tunnel_until_either_side_ends_it() -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: abc", "Sec-WebSocket-Version: 13")
    with port() as site:
        for ends in ("client", "endpoint"):
            client = site.connect()
            client.send(get("/lb/web/ws", *upgrade))
            call = site.far.take()
            assert site.far.head(call)[1]["sec-websocket-key"] == "abc"
            call.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly")
            told = client.answer()
            assert (told.status, told.headers["Upgrade"], told.headers["connection"]) == (101, "websocket", "upgrade")
            client.send(b"\x81\x00 anything")
            while len(call.rest) < 11:
                call._read()
            assert (client.rest or client.socket.recv(5)) == b"early"
            client.rest = b""
            (client if ends == "client" else call).close()
            if ends == "client":
                call.rest = b""
                assert call.is_ended()
            else:
                assert client.is_ended()
        site.settled()


def test_an_endpoint_that_dies_is_an_error_and_never_a_wait() -> None:
    """Before its answer: 502. In the middle of it: the connection ends, so that nobody takes half for all."""
    with port() as site:
        client = site.connect().send(get("/lb/web/a"))
        call = site.far.take()
        site.far.head(call)
        call.close()
        refused = client.answer()
        assert (refused.status, refused.json["error"]) == (502, "BAD_GATEWAY")
        for begun in (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", CHUNKED + b"4\r\nhalf\r\n"):
            client = site.connect().send(get("/lb/web/a"))
            call = site.far.take()
            site.far.head(call)
            call.send(begun)
            while not client.rest.rstrip(b"\r\n").endswith(b"half"):
                client._read()
            client.rest = b""
            call.close()
            assert client.is_ended()
        client = site.connect().send(get("/lb/web/a"))
        site.far.answer(b"SSH-2.0-OpenSSH\r\n\r\n")
        assert client.answer().status == 502
        site.settled()


def test_a_client_that_leaves_ends_its_request_at_the_endpoint() -> None:
    with port() as site:
        client = site.connect().send(get("/lb/web/a"))
        call = site.far.take()
        site.far.head(call)
        client.close()
        assert call.is_ended()
        site.settled()
        assert site.passages.requests[0] == 1


def test_an_endpoint_that_is_not_there_or_has_no_room_says_so() -> None:
    with port(backlog=0) as site:
        waiting = [site.connect().send(get("/lb/web/a")) for _ in range(3)]
        refused = waiting[-1].answer()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        site.far.close()
        site.far.path.unlink()
        gone = site.connect().ask(get("/lb/web/a"))
        assert (gone.status, gone.json["error"]) == (503, "ENDPOINT_UNAVAILABLE")
        unknown = site.connect().ask(get("/lb/other/a"))
        assert unknown.status == 404 and "There is: web" in unknown.json["message"]


def test_an_endpoint_that_cannot_start_answers_with_the_reason() -> None:
    with port() as site:
        client = site.connect().send(get("/lb/web/a"))
        site.far.head(site.far.take())
        error = EndpointUnavailable("web cannot be started: no torch")
        site.served.call(lambda: site.passages.endpoint_failed(EndpointName("web"), error))
        told = client.answer()
        assert told.status == 503 and "no torch" in told.json["message"]


def test_nobodys_bytes_pile_up_here() -> None:
    """A client that does not read is not read for, an endpoint that does not read makes its client wait."""
    with port() as site:
        client = site.connect().send(get("/lb/web/a"))
        call = site.far.take()
        site.far.head(call)
        call.socket.settimeout(0.5)
        sent = 0
        call.send(CHUNKED)
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                sent += call.socket.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert sent < 32 * 1024 * 1024
        client.close()
        assert call.is_ended()

        client = site.connect()
        client.socket.settimeout(0.5)
        client.send(b"POST /lb/web/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000000\r\n\r\n")
        call = site.far.take()
        sent = 0
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                sent += client.socket.send(b"x" * 65536)
        assert sent < 32 * 1024 * 1024
        call.close()


def test_a_client_that_asks_on_without_reading_is_made_to_wait_between_answers() -> None:
    """The second request goes to the endpoint when the first answer was taken, not before."""
    size = 8 * 1024 * 1024
    with port() as site:
        client = site.connect().send(get("/lb/web/1") + get("/lb/web/2"))
        call = site.far.take()
        site.far.head(call)
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        call.socket.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < size:
                sent += call.socket.send(b"x" * min(65536, size - sent))
        call.socket.settimeout(20)
        told: list[bytes] = []

        def read() -> None:
            told.append(client.answer().body)

        reading = threading.Thread(target=read)
        reading.start()
        while sent < size:
            sent += call.socket.send(b"x" * min(65536, size - sent))
        reading.join(20)
        assert len(told[0]) == size
        assert site.far.answer()[0] == "GET /2 HTTP/1.1"
        assert client.answer().body == b"ok"


def test_an_answer_before_the_whole_upload_is_seen() -> None:
    with port() as site:
        client = site.connect()
        client.send(b"POST /lb/web/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\n\r\nbegun")
        site.far.answer(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        told = client.answer()
        assert (told.status, told.body, told.headers["connection"]) == (413, b"no", "close")


def test_uploads_have_the_ports_limits() -> None:
    with port(limits=HURRY) as site:
        slow = site.connect().send(b"POST /lb/web/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\na")
        assert slow.answer().status == 408
        large = site.connect().ask(b"POST /lb/web/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
        assert large.status == 413
        broken = site.connect().send(get("/lb/web/a", "Transfer-Encoding: chunked").replace(b"GET", b"PUT") + b"zz\r\n")
        assert broken.answer().status == 400
        stuck = site.connect().send(get("/lb/web/a"))
        calls = [site.far.take() for _ in range(2)]
        calls[-1].socket.settimeout(20)
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(10_000):  # its client reads nothing
                calls[-1].send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65536)
        stuck.close()


def test_old_clients_get_a_body_without_chunks() -> None:
    with port() as site:
        client = site.connect().send(b"GET /lb/web/a HTTP/1.0\r\n\r\n")
        told, headers = site.far.answer(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert told == "GET /a HTTP/1.1" and headers["host"] == "web"
        answer = client.answer()
        assert (answer.headers["connection"], "transfer-encoding" in answer.headers) == ("close", False)
        while True:
            try:
                client._read()
            except ConnectionError:
                break
        assert client.rest == b"abcde"


def test_head_and_bodiless_answers_end_where_they_say() -> None:
    with port() as site:
        client = site.connect().send(get("/lb/web/a").replace(b"GET", b"HEAD"))
        site.far.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n")
        assert client.answer(head_only=True).status == 200
        client.send(get("/lb/web/a"))
        site.far.answer(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 50\r\n\r\n")
        assert client.answer(head_only=True).status == 304
        assert client.ask(post("/echo", b"next")).body == b"next"


# --- who may ---


PUBLIC = LbServed(endpoint=EndpointName("open"), resource="open", public=True)


def test_beyond_the_loopback_a_token_is_asked_for_unless_the_endpoint_is_public() -> None:
    with port(WEB, PUBLIC, host="10.0.0.5") as site:
        for path in ("/lb/web/a", "/lb/nowhere/a"):
            assert site.connect().ask(get(path)).status == 401
        assert site.connect().ask(get("/lb/web/a", "Authorization: Bearer fm.no.no")).status == 401
        client = site.connect().send(get("/lb/web/a", f"Authorization: Bearer {site.door.issue('call')}"))
        assert "authorization" not in site.far.answer()[1]
        assert client.answer().status == 200
        metrics = site.connect().ask(get("/lb/web/a", f"Authorization: Bearer {site.door.issue('metrics', 'm')}"))
        assert metrics.status == 403
        client = site.connect().send(get("/lb/open/a", "Origin: https://evil.example"))
        site.far.answer()
        assert "access-control-allow-origin" not in client.answer().headers


def test_pages_of_other_sites_may_not_call_and_those_that_may_can_read() -> None:
    with port(allow_origin=["https://good.example"]) as site:
        assert site.connect().ask(get("/lb/web/a", "Origin: https://evil.example")).status == 403
        assert site.connect().ask(get("/lb/web/a").replace(b"localhost", b"evil.example")).status == 403
        client = site.connect().send(get("/lb/web/a", "Origin: https://good.example"))
        site.far.answer()
        assert client.answer().headers["access-control-allow-origin"] == "https://good.example"
        client = site.connect().send(get("/lb/web/a", "Origin: https://good.example"))
        site.far.answer(b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\ncontent-length: 0\r\n\r\n")
        assert client.answer().headers["access-control-allow-origin"] == "*"


def test_names_of_two_environments_are_told_apart_and_tokens_keep_to_theirs() -> None:
    def in_environment(name: str, id: str) -> LbServed:
        return LbServed(endpoint=EndpointName(id), id=id, resource="web", app="shop", environment=name)

    live, trial = in_environment("production", "web-1"), in_environment("staging", "web-2")
    with port(live, trial, host="10.0.0.5") as site:
        token = site.door.issue("call", app="shop", environment="staging")
        for path, status in (("/lb/web/a", 200), ("/lb/web-2/a", 200), ("/lb/web-1/a", 403)):
            client = site.connect().send(get(path, f"Authorization: Bearer {token}"))
            if status == 200:
                site.far.answer()
            assert client.answer().status == status, path
        found = site.table.find("web", app="", environment="")
        assert (found.endpoint, site.table.find("web", app="", environment="staging").endpoint) == ("web-1", "web-2")


def test_an_answer_that_lasts_ends_with_the_token_it_was_given_for() -> None:
    with port(limits=HURRY) as site:
        client = site.connect().send(
            get("/lb/web/a", f"Authorization: Bearer {site.door.issue('call', lifetime_s=100)}")
        )
        call = site.far.take()
        site.far.head(call)
        call.send(CHUNKED + b"1\r\na\r\n")
        assert client.answer().status == 200
        site.door.clock.now += 200
        client.rest = b""
        while True:
            try:
                client._read()
            except ConnectionError:
                break
        assert call.is_ended()


def test_a_server_that_starts_or_stops_takes_nothing_new() -> None:
    with port() as site:
        site.closed = Answer(503, [], b"{}")
        assert site.connect().ask(get("/lb/web/a")).status == 503
        site.closed = None
        client = site.connect().send(get("/lb/web/a"))
        call = site.far.take()
        site.far.head(call)
        drained = site.served.begin_drain(20)
        site.served.wait_until(lambda: site.served.server.draining)
        call.send(OK)
        told = client.answer()
        assert (told.body, told.headers["connection"]) == (b"ok", "close")
        client.close()
        assert drained.result(20) == 0


def test_what_a_client_gets_is_counted() -> None:
    with port() as site:
        client = site.connect().send(get("/lb/web/a"))
        site.far.answer()
        client.answer()
        site.settled()
        site.connect().ask(get("/lb/other/a"))
        assert dict(site.passages.requests) == {200: 1, 404: 1}
        assert json.loads(site.connect().ask(get("/app")).body)["app"] is True


def test_an_endpoint_that_dies_before_it_has_read_is_noticed_at_once() -> None:
    """The kernel tells of that by an error on the connection, not by its end."""
    upload = b"POST /lb/web/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000000\r\n\r\n"
    with port() as site:
        for sent, fills in ((get("/lb/web/a"), False), (upload, False), (upload, True)):
            client = site.connect().send(sent)
            call = site.far.take()
            if fills:
                client.socket.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    while True:
                        client.socket.send(b"x" * 65536)
                client.socket.settimeout(20)
            call.close()
            assert client.answer().status == 502
            client.close()
        site.settled()
