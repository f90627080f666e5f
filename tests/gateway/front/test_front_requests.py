"""What a client asks of a hot route and what comes back: bodies, order, keeping alive, who is gone."""

import asyncio
import http.client
import socket

import pytest
from front_connection import fed
from front_fixtures import Served, get, post, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmesh.gateway.front import FrontLimits


@pytest.fixture(scope="module", params=[True, False], ids=["lean", "uvicorn"])
def served(request):
    """Hot routes, on the lean server's connections and on uvicorn's."""
    with serving(lean=request.param) as served:
        yield served


@pytest.fixture(scope="module")
def lean():
    """For what uvicorn leaves out."""
    with serving() as served:
        yield served


def test_a_hot_request_is_answered_with_length_type_and_date(served: Served) -> None:
    answer = served.connect().ask(post("/echo?a=1", b"hello"))
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-length"] == "5"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["date"].endswith(" GMT")
    assert "connection" not in answer.headers


def test_the_handler_sees_method_path_query_headers_and_the_caller(served: Served) -> None:
    answer = served.connect().ask(get("/about?x=%20y", "X-Name: alice", "X-Twice: 1", "x-twice: 2"))
    said = answer.json
    assert (said["method"], said["path"], said["query"], said["principal"]) == ("GET", "/about", "x=%20y", "alice")
    assert said["headers"] == {"host": "localhost", "x-name": "alice", "x-twice": "1, 2"}


def test_forwarded_headers_are_just_headers(served: Served) -> None:
    said = served.connect().ask(get("/app", "X-Forwarded-For: 10.1.1.1")).json
    assert said["client"][0] == "127.0.0.1"


def test_a_head_that_comes_again_is_served_from_what_is_known_of_it(served: Served) -> None:
    """Whoever sends it: its body and its answer are its own, and the same head cut anywhere is the same request."""
    request = post("/echo?again", b"first")
    other = request.replace(b"first", b"other")
    assert served.connect().ask(request).body == b"first"
    assert served.connect().ask(other).body == b"other"
    for cut in (1, len(request) - 5, len(request) - 1):
        client = served.connect().send(other[:cut])
        served.connect().ask(request)
        assert client.ask(other[cut:]).body == b"other"
    assert served.connect().ask(other + b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n").body == b"other"
    first, second = [seen for seen in served.site.seen if seen.query == b"again"][:2]
    assert first.headers is second.headers


def test_a_head_that_comes_again_is_asked_about_again(served: Served) -> None:
    """Its token may have been revoked, and its route taken away."""
    request = post("/gone", b"", "X-Timeout-Ms: 5")
    served.site.routes[b"/gone"] = served.site.echo
    client = served.connect()
    assert [client.ask(request).status for _ in range(3)] == [200] * 3
    served.site.refused.add(b"/gone")
    assert client.ask(request).status == 401
    served.site.refused.clear()
    assert client.ask(request).status == 200
    del served.site.routes[b"/gone"]
    assert client.ask(request).json["app"] is True


def test_empty_lines_are_no_head_that_comes_again(served: Served) -> None:
    client = served.connect()
    assert client.ask(b"\r\n\r\n" + post("/echo", b"x")).body == b"x"
    assert client.ask(b"\r\n\r\n" + post("/about", b"x")).json["path"] == "/about"


@pytest.mark.parametrize(
    "header", ["Origin: https://page.example", "Accept: text/event-stream", "Host: jobs.localhost"], ids=lambda h: h[:6]
)
def test_what_needs_more_than_an_answer_is_the_applications(served: Served, header: str) -> None:
    """Again and again, whatever is known of the same path."""
    client = served.connect()
    assert client.ask(post("/echo", b"hot")).body == b"hot"
    asked = (
        post("/echo", b"x", header)
        if header[:4] != "Host"
        else post("/echo", b"x").replace(b"localhost", header[6:].encode())
    )
    assert [client.ask(asked).json["app"] for _ in range(2)] == [True, True]
    assert served.connect().ask(post("/echo", b"hot")).body == b"hot"


def test_heads_that_do_not_come_again_are_not_kept(served: Served) -> None:
    """Neither those with a header of their own nor those of paths that are looked at, not called."""
    heads = served.server.heads
    before = len(heads)
    client = served.connect()
    for number in range(20):
        client.ask(post("/echo", b"", f"Idempotency-Key: k{number}"))
        client.ask(get(f"/about?{number}"))
    assert len(heads) == before


def test_what_the_gate_refuses_never_reaches_the_handler(served: Served) -> None:
    before = len(served.site.seen)
    client = served.connect()
    assert client.ask(get("/about", "Authorization: no")).status == 401
    assert client.ask(get("/about")).status == 200  # the connection lives on
    assert len(served.site.seen) == before + 1


def test_a_refused_body_is_not_waited_for(served: Served) -> None:
    client = served.connect().send(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nAuthorization: no\r\nContent-Length: 9999\r\n\r\nx"
    )
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert client.is_ended()


def test_http_client_keeps_its_connection(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    for number in range(3):
        connection.request("POST", "/echo", body=b"%d" % number, headers={"Connection": "keep-alive"})
        assert connection.getresponse().read() == b"%d" % number
    local = connection.sock.getsockname()
    connection.request(
        "POST", "/echo", body=iter([b"a", b"bc"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert connection.getresponse().read() == b"abc"
    assert connection.sock.getsockname() == local
    connection.close()


def test_connection_close_is_obeyed(served: Served) -> None:
    client = served.connect()
    answer = client.ask(get("/about", "Connection: close"))
    assert answer.headers["connection"] == "close"
    assert client.is_ended()


def test_nothing_behind_the_last_request_is_served(served: Served) -> None:
    client = served.connect().send(get("/hold?last", "Connection: close") + post("/echo?behind") + get("/app"))
    client.send(post("/echo?behind"))
    served.wait_until(lambda: any(held.request.query == b"last" for held in served.site.held))
    assert served.connect().ask(get("/about")).status == 200
    served.answer_held(b"last")
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"last", "close")
    assert client.is_ended()
    assert not any(request.query == b"behind" for request in served.site.seen)


def test_http_1_0_closes_unless_it_asks_to_keep(lean: Served) -> None:
    client = lean.connect()
    assert client.ask(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").headers["connection"] == "keep-alive"
    assert client.ask(b"GET /echo HTTP/1.0\r\n\r\n").headers["connection"] == "close"
    assert client.is_ended()


def test_head_has_the_length_and_no_body(served: Served) -> None:
    client = served.connect().send(b"HEAD /big?1234 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.answer(head_only=True).headers["content-length"] == "1234"
    assert client.ask(post("/echo", b"next")).body == b"next"


def test_204_has_neither_length_nor_body(served: Served) -> None:
    client = served.connect()
    assert "content-length" not in client.ask(get("/empty")).headers
    assert client.ask(post("/echo", b"next")).body == b"next"


def test_expect_100_continue_is_answered_before_the_body(served: Served) -> None:
    client = served.connect().send(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert client.answer().status == 100
    assert client.ask(b"abc").body == b"abc"


def test_100_continue_waits_for_the_answers_before_it(served: Served) -> None:
    client = served.connect()
    client.send(get("/hold?before-continue"))
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    served.wait_until(lambda: any(held.request.query == b"before-continue" for held in served.site.held))
    served.answer_held(b"before-continue")
    assert client.answer().body == b"before-continue"
    assert client.answer().status == 100
    assert client.ask(b"abc").body == b"abc"


def test_another_expectation_fails(lean: Served) -> None:
    assert lean.connect().ask(get("/about", "Expect: a-miracle")).status == 417


def test_a_body_may_come_in_many_pieces(served: Served) -> None:
    body = bytes(range(256)) * 8192
    assert served.connect().ask(post("/echo", body)).body == body


def test_chunks_with_extensions_and_trailers_are_one_body(served: Served) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = served.connect()
    answer = client.ask(head + b"3;ext=1\r\nabc\r\n4\r\n\r\n\r\n\r\n0\r\nX-Trailer: 1\r\n\r\n" + get("/about"))
    assert answer.body == b"abc\r\n\r\n"
    assert "x-trailer" not in client.answer().json["headers"]


def test_an_offer_of_another_http_is_ignored(lean: Served) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "UPGRADE: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    client = lean.connect().send(post("/echo", b"one", *offer) + post("/echo", b"two", *offer))
    assert [client.answer().body, client.answer().body] == [b"one", b"two"]
    large = post("/echo", b"x" * 100_000, *offer)
    client.send(large[:150])
    assert client.ask(large[150:]).body == b"x" * 100_000
    assert client.ask(post("/app", b"three", *offer)).json["body"] == "three"


def test_empty_lines_before_a_request_are_ignored(served: Served) -> None:
    client = served.connect()
    assert client.ask(b"\r\n\r\n" + get("/about")).status == 200
    assert client.ask(b"\r\n" + post("/echo", b"x")).body == b"x"
    assert client.send(b"\r").ask(b"\n" + post("/echo", b"y")).body == b"y"


@pytest.mark.parametrize("value", ["1%0D%0Ax-b:%202", "1%0Ax-b:%202", "1%0Dx-b:%202", "1%00"])
def test_a_header_value_cannot_end_its_line(served: Served, value: str) -> None:
    client = served.connect()
    answer = client.ask(get(f"/evil?{value}"))
    assert answer.status == 500
    assert "x-b" not in answer.headers
    assert client.ask(get("/about")).status == 200


def test_a_handler_that_raises_is_answered_for(served: Served) -> None:
    answer = served.connect().ask(get("/fail"))
    assert (answer.status, answer.json["error"]) == (500, "INTERNAL")


def test_answers_leave_in_the_order_of_the_requests(lean: Served) -> None:
    client = lean.connect()
    client.send(get("/hold?order-1") + get("/hold?order-2") + post("/echo", b"third") + get("/hold?order-4"))
    lean.wait_until(lambda: any(held.request.query == b"order-4" for held in lean.site.held))
    for query in (b"order-4", b"order-2", b"order-1"):
        lean.answer_held(query)
    assert [client.answer().body for _ in range(4)] == [b"order-1", b"order-2", b"third", b"order-4"]


def test_the_answers_of_one_turn_leave_in_one_write() -> None:
    seen, transport = fed([post("/echo", b"x") * 5])
    assert (len(seen), transport.writes) == (5, 1)
    _, transport = fed([get("/hold") * 5], answer_held=True)
    assert (transport.written.count(b"late"), transport.writes) == (5, 1)


def test_an_answer_given_twice_counts_once(served: Served) -> None:
    client = served.connect().send(get("/hold?twice"))
    served.wait_until(lambda: any(held.request.query == b"twice" for held in served.site.held))
    served.answer_held(b"twice", b"first")
    served.answer_held(b"twice", b"second")
    assert client.answer().body == b"first"
    assert client.ask(post("/echo", b"x")).body == b"x"


def test_pipelining_is_bounded_and_goes_on_when_answers_are_given() -> None:
    with serving(FrontLimits(max_pipelined=4)) as served:
        client = served.connect()
        client.send(b"".join(get(f"/hold?{number}") for number in range(50)))
        served.wait_until(lambda: len(served.site.held) >= 4)
        assert len(served.site.held) == 4
        for number in range(50):
            served.wait_until(lambda number=number: len(served.site.held) > number)
            assert len(served.site.held) <= number + 4
            served.answer_held(b"%d" % number)
            assert client.answer().body == b"%d" % number


def test_a_thousand_pipelined_requests_are_all_answered_in_order(served: Served) -> None:
    client = served.connect()
    client.send(b"".join(post("/echo", b"%d" % number) for number in range(1000)))
    assert [client.answer().body for _ in range(1000)] == [b"%d" % number for number in range(1000)]


@pytest.mark.parametrize("how", ["close", "half-close"])
def test_a_call_is_given_up_once_when_its_client_goes(served: Served, how: str) -> None:
    served.site.cancelled.clear()
    query = f"alone-{how}".encode()
    client = served.connect().send(get(f"/hold?alone-{how}"))
    served.wait_until(lambda: any(held.request.query == query for held in served.site.held))
    if how == "close":
        client.close()
    else:
        client.socket.shutdown(socket.SHUT_WR)
    served.wait_until(lambda: served.site.cancelled == [query])
    served.answer_held(query)  # nobody is there: nothing happens
    assert served.connect().ask(get("/about")).status == 200
    assert served.site.cancelled == [query]


@pytest.mark.parametrize("how", ["close", "half-close"])
def test_pipelined_calls_are_given_up_with_their_client(lean: Served, how: str) -> None:
    lean.site.cancelled.clear()
    client = lean.connect().send(get(f"/hold?{how}") + get(f"/hold?{how}-2"))
    lean.wait_until(lambda: any(held.request.query == f"{how}-2".encode() for held in lean.site.held))
    if how == "close":
        client.close()
    else:
        client.socket.shutdown(socket.SHUT_WR)
    lean.wait_until(lambda: len(lean.site.cancelled) == 2)
    lean.answer_held(how.encode())  # nobody is there: nothing happens
    assert sorted(lean.site.cancelled) == [how.encode(), f"{how}-2".encode()]


def test_what_was_answered_before_a_half_close_arrives(lean: Served) -> None:
    client = lean.connect().send(post("/echo", b"one") + post("/echo", b"two"))
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.answer().body, client.answer().body] == [b"one", b"two"]
    assert client.is_ended()


def test_an_answered_call_is_not_given_up(served: Served) -> None:
    served.site.cancelled.clear()
    client = served.connect().send(get("/hold?answered"))
    served.wait_until(lambda: any(held.request.query == b"answered" for held in served.site.held))
    served.answer_held(b"answered")
    assert client.answer().status == 200
    before = served.server.connections
    client.close()
    served.wait_until(lambda: served.server.connections < before)
    assert served.site.cancelled == []


def test_the_plain_event_loop_serves_as_well() -> None:
    with serving(loop_factory=asyncio.new_event_loop) as served:
        client = served.connect()
        assert client.ask(post("/echo", b"x" * 100_000)).body == b"x" * 100_000
        assert client.ask(get("/app")).json["app"]
        assert client.ask(get("/app")).json["app"]


def test_bytes_that_trickle_make_the_same_request(served: Served) -> None:
    client = served.connect()
    for byte in post("/echo?slowly", b"body"):
        client.send(bytes((byte,)))
    assert client.answer().body == b"body"


# --- however the bytes are cut, the same requests come out ---

HEADERS = st.dictionaries(
    st.from_regex(r"\Ax-[a-z]{1,8}\Z"), st.from_regex(r"\A[!-~]([ -~]{0,20}[!-~])?\Z"), max_size=5
)
BODIES = st.one_of(
    st.binary(max_size=40), st.lists(st.sampled_from([b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"GET / "])).map(b"".join)
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[dict[str, str], bytes]]:
    """A request's bytes, and what should be read from them."""
    headers, body = draw(HEADERS), draw(BODIES)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    kind = draw(st.sampled_from(["length", "chunks", "none"]))
    if kind == "none":
        return get("/echo", *lines), (headers, b"")
    if kind == "length":
        return post("/echo", body, *lines), (headers, body)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if b > a]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    trailer = draw(st.sampled_from([b"", b"x-trailer: 1\r\n"]))
    head = "\r\n".join(["POST /echo HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", *lines, "", ""]).encode()
    return head + chunks + b"0\r\n" + trailer + b"\r\n", (headers, body)


@settings(max_examples=150, deadline=None)
@given(sent=st.lists(requests(), min_size=1, max_size=4), data=st.data())
def test_pieces_of_any_size_give_the_same_requests(sent, data) -> None:
    stream = b"".join(wire for wire, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if b > a]
    seen, transport = fed(pieces)
    kept = [
        (
            {name.decode(): value.decode() for name, value in request.headers.items() if name.startswith(b"x-")},
            request.body,
        )
        for request in seen
    ]
    assert kept == [expected for _, expected in sent]
    assert transport.written.count(b"HTTP/1.1 200 OK") == len(sent)


@settings(max_examples=60, deadline=None)
@given(before=st.lists(requests(), max_size=3), after=st.lists(requests(), max_size=2), data=st.data())
def test_the_bytes_from_the_first_request_that_is_not_hot_are_handed_over_exactly(before, after, data) -> None:
    rest = get("/app", "x: 1") + b"".join(wire for wire, _ in after)
    stream = b"".join(wire for wire, _ in before) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if b > a]
    seen, transport = fed(pieces)
    assert transport.handed == rest
    assert len(seen) == len(before)
