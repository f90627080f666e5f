"""The port as a whole: connections that become the application's, TLS, many idle ones, stopping under load."""

import datetime
import resource
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from front_fixtures import HURRY, Served, get, post, serving
from websockets.sync.client import connect as connect_websocket

from flashmesh.gateway.front import FrontLimits


@pytest.fixture(scope="module")
def served():
    with serving() as served:
        yield served


# --- handing over ---


def test_the_application_is_not_made_before_it_is_needed() -> None:
    with serving() as served:
        client = served.connect()
        assert client.ask(get("/about")).status == 200
        assert served.site.made == 0
        assert client.ask(get("/app")).json["app"]
        assert served.connect().ask(get("/app")).json["app"]
        assert served.site.made == 1


@pytest.mark.parametrize("body", [0, 10_000_000])
def test_an_application_that_cannot_be_made_is_an_answer_and_ends_only_that_connection(body: int) -> None:
    with serving(FrontLimits(linger_s=0.2)) as served:
        made = served.site.application
        hot = served.connect()

        def broken() -> None:
            raise RuntimeError("not today")

        served.server._application = broken
        client = served.connect().send(post("/app", b"x" * body))
        answer = client.answer()
        assert (answer.status, answer.json["error"], answer.headers["connection"]) == (500, "INTERNAL", "close")
        assert client.is_ended()
        served.server._application = made
        assert served.connect().ask(get("/app")).json["app"]
        assert hot.ask(get("/about")).status == 200


def test_a_connection_goes_over_with_all_that_came_behind(served: Served) -> None:
    client = served.connect()
    assert client.ask(post("/echo", b"one")).body == b"one"
    client.send(post("/echo", b"two") + post("/app", b"three") + get("/app/four") + post("/echo", b"five"))
    assert client.answer().body == b"two"
    assert client.answer().json["body"] == "three"
    assert client.answer().json["path"] == "/app/four"
    assert client.answer().body == b"five"


def test_the_application_waits_for_the_answers_before_it(served: Served) -> None:
    client = served.connect().send(get("/hold?before") + post("/app", b"after"))
    served.wait_until(lambda: any(held.request.query == b"before" for held in served.site.held))
    before = len(served.site.lines)
    client.send(get("/app/later"))
    assert served.connect().ask(get("/about")).status == 200
    assert len(served.site.lines) == before
    served.answer_held(b"before")
    assert client.answer().body == b"before"
    assert client.answer().json["body"] == "after"
    assert client.answer().json["path"] == "/app/later"


def test_a_body_that_comes_later_reaches_the_application(served: Served) -> None:
    client = served.connect().send(b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")
    assert len(client.ask(b"x" * 300_000).json["body"]) == 300_000


def test_a_head_in_pieces_reaches_the_application(served: Served) -> None:
    client = served.connect().send(b"GET /ap").send(b"p HTTP/1.1\r\nHo").send(b"st: a\r\n")
    assert client.ask(b"\r\n").json["path"] == "/app"


def test_a_hot_path_with_another_method_is_the_applications(served: Served) -> None:
    assert served.connect().ask(b"DELETE /echo HTTP/1.1\r\nHost: a\r\n\r\n").json["path"] == "/echo"


def test_an_absolute_target_is_the_applications(served: Served) -> None:
    assert (
        served.connect().ask(b"GET http://localhost/echo HTTP/1.1\r\nHost: localhost\r\n\r\n").json["path"] == "/echo"
    )


@pytest.mark.parametrize("path", ["/ws", "/about"], ids=["cold", "hot"])
def test_a_websocket_is_the_applications_on_any_path(served: Served, path: str) -> None:
    with connect_websocket(f"ws://127.0.0.1:{served.port}{path}") as socket:
        socket.send("abc")
        assert socket.recv() == "cba"


def test_a_websocket_may_follow_hot_requests(served: Served) -> None:
    client = served.connect()
    assert client.ask(get("/about")).status == 200
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    ask = get("/ws", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", key)
    client.send(post("/echo", b"x") + ask)
    assert client.answer().body == b"x"
    assert client.answer().status == 101


def test_everything_can_be_served_by_uvicorn_alone() -> None:
    with serving(HURRY, lean=False) as served:
        client = served.connect()
        assert client.ask(get("/app")).json == {"path": "/app", "body": "", "client": client.address(), "app": True}
        assert client.ask(post("/echo", b"hot")).body == b"hot"
        assert (served.server.connections, served.server.requests, served.server.handed_over) == (1, 1, 0)
        assert served.connect().is_ended()  # it said nothing for too long


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A self-signed certificate for localhost, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.PrivateFormat.PKCS8
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.fixture(scope="module")
def secure(certificate: Path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(FrontLimits(max_body=1_000_000, linger_s=0.1, sweep_s=0.05), tls=context) as served:
        yield served


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_hot_and_other_requests_are_served_over_tls(secure: Served, trusting: ssl.SSLContext) -> None:
    client = secure.connect(trusting)
    assert client.ask(post("/echo", b"x" * 500_000)).body == b"x" * 500_000
    client.send(post("/echo", b"1") + post("/echo", b"2") + get("/app"))
    assert [client.answer().body, client.answer().body] == [b"1", b"2"]
    assert client.answer().json["app"]
    assert client.ask(get("/app/again")).json["path"] == "/app/again"


def test_a_large_answer_arrives_over_tls(secure: Served, trusting: ssl.SSLContext) -> None:
    client = secure.connect(trusting)
    assert len(client.ask(get("/big?9000000")).body) == 9_000_000
    assert client.ask(post("/echo", b"x")).body == b"x"


def test_a_refusal_arrives_over_tls(secure: Served, trusting: ssl.SSLContext) -> None:
    client = secure.connect(trusting).send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000001\r\n\r\n")
    assert client.answer().status == 413
    assert client.is_ended()


def test_a_websocket_works_over_tls(secure: Served, trusting: ssl.SSLContext) -> None:
    with connect_websocket(f"wss://localhost:{secure.port}/ws", ssl=trusting) as socket:
        socket.send("abc")
        assert socket.recv() == "cba"


# --- many connections ---


@pytest.mark.parametrize("path", ["/echo", "/app"], ids=["hot", "application"])
def test_a_refusal_is_seen_over_tls_although_the_client_goes_on_sending(
    secure: Served, trusting: ssl.SSLContext, path: str
) -> None:
    client = secure.connect(trusting).send(post(path, b"x" * 10_000_000))
    assert client.answer().status == 413


def test_idle_connections_are_cheap_and_do_not_hinder_others() -> None:
    count = min(2000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2)
    with serving() as served:
        for _ in range(count):
            served.connect()
        served.wait_until(lambda: served.server.connections == count)
        assert served.clients[count // 2].ask(post("/echo", b"x")).body == b"x"
        assert served.connect().ask(get("/about")).status == 200
        for client in served.clients:
            client.close()
        served.wait_until(lambda: served.server.connections == 0)


# --- stopping ---


def test_draining_closes_what_is_idle_and_ends_what_is_under_way() -> None:
    with serving() as served:
        idle, idle_app = served.connect(), served.connect()
        assert idle.ask(get("/about")).status == 200
        assert idle_app.ask(get("/app")).status == 200
        busy = served.connect().send(get("/hold?1") + get("/hold?2"))
        busy_app = served.connect().send(get("/slow"))
        served.wait_until(lambda: len(served.site.held) == 2 and "/slow" in served.site.lines)
        drained = served.begin_drain(20)
        assert idle.is_ended()
        assert idle_app.is_ended()
        with pytest.raises(OSError, match="refused"):
            served.connect()
        served.answer_held(b"1")
        assert "connection" not in busy.answer().headers
        served.answer_held(b"2")
        assert busy.answer().headers["connection"] == "close"
        assert busy.is_ended()
        assert not drained.done()
        served.call(served.site.release.set)
        assert busy_app.answer().headers["connection"] == "close"
        assert drained.result(20) == 0


def test_a_request_whose_body_is_arriving_is_still_served() -> None:
    with serving() as served:
        client = served.connect().send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        served.wait_until(lambda: any(lane._arriving is not None for lane in served.server._lanes))
        drained = served.begin_drain(20)
        served.wait_until(lambda: served.server.draining)
        answer = client.ask(b"def")
        assert (answer.body, answer.headers["connection"]) == (b"abcdef", "close")
        assert drained.result(20) == 0


def test_what_waits_to_be_the_applications_is_still_served() -> None:
    with serving() as served:
        client = served.connect().send(get("/hold?1") + get("/app"))
        served.wait_until(lambda: any(lane._handing for lane in served.server._lanes))
        drained = served.begin_drain(20)
        served.wait_until(lambda: served.server.draining)
        served.answer_held(b"1")
        assert client.answer().body == b"1"
        answer = client.answer()
        assert answer.json["app"]
        assert answer.headers["connection"] == "close"
        assert drained.result(20) == 0


def test_draining_gives_up_in_time_and_close_ends_the_rest() -> None:
    with serving() as served:
        client = served.connect().send(get("/hold?forever"))
        other = served.connect().send(get("/slow"))
        served.wait_until(lambda: len(served.site.held) == 1 and "/slow" in served.site.lines)
        assert served.begin_drain(0.05).result(20) == 2
        served.call(served.server.close)
        assert client.is_ended()
        assert other.is_ended()
        assert served.site.cancelled == [b"forever"]


def test_no_request_is_lost_when_draining_under_load() -> None:
    with serving() as served:
        lost: list[str] = []
        answered = [0]

        def load(path: str) -> None:
            try:
                client = served.connect()
                while True:
                    sent = post(path, b"x")
                    client.send(sent)
                    answer = client.answer()
                    answered[0] += answer.status == 200
                    if answer.headers.get("connection") == "close":
                        return
            except ConnectionError as error:
                # Between two requests a connection may be closed; in the middle of an answer it may not.
                if client.rest:
                    lost.append(repr(error))

        threads = [threading.Thread(target=load, args=(path,)) for path in ("/echo", "/app") * 4]
        for thread in threads:
            thread.start()
        served.wait_until(lambda: served.server.requests > 200)
        assert served.begin_drain(20).result(25) == 0
        for thread in threads:
            thread.join(20)
        assert lost == []
        assert answered[0] > 200


def test_a_websocket_is_told_that_the_server_leaves() -> None:
    with serving() as served, connect_websocket(f"ws://127.0.0.1:{served.port}/ws") as socket:
        socket.send("abc")
        assert socket.recv() == "cba"
        drained = served.begin_drain(20)
        with pytest.raises(Exception, match="1012"):
            socket.recv(timeout=20)
        assert drained.result(20) == 0
