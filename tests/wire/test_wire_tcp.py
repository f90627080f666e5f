"""Links over TCP: TLS 1.3 under the server's own authority, and vanished machines noticed."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from flashmesh.functions.errors import LinkLost, LinkProtocolError
from flashmesh.gateway.access.certificates import own_certificate
from flashmesh.wire import tls
from flashmesh.wire.codec import Ping, Pong, encode
from flashmesh.wire.connection import Keepalive, Link, dial_tcp, serve_tcp
from flashmesh.wire.frames import AnyFrame, Hello, Invoke, Result, Started
from flashmesh.wire.reading import FrameReader

HOST = "127.0.0.1"
QUICK = Keepalive(interval_s=0.02, patience_s=0.2)


class End:
    """What one end of a link saw."""

    def __init__(self) -> None:
        self.frames: list[AnyFrame] = []
        self.lost: list[Exception | None] = []
        self.changed = asyncio.Event()

    def on_frame(self, link: Link, frame: AnyFrame) -> None:
        self.frames.append(frame)
        self.changed.set()

    def on_lost(self, link: Link, error: Exception | None) -> None:
        self.lost.append(error)
        self.changed.set()

    async def until(self, ready: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not ready():
                self.changed.clear()
                await self.changed.wait()


class Echo(End):
    """A session that gives each call's payload back."""

    def __init__(self, keepalive: Keepalive | None = None) -> None:
        super().__init__()
        self.keepalive = keepalive
        self.links: list[Link] = []

    def accept(self) -> Link:
        self.links.append(Link(self.answer, self.on_lost, keepalive=self.keepalive))
        self.changed.set()
        return self.links[-1]

    def answer(self, link: Link, frame: AnyFrame) -> None:
        self.on_frame(link, frame)
        if isinstance(frame, Invoke):
            link.send(Result(frame.execution, payload=frame.payload))


@contextlib.asynccontextmanager
async def serving(echo: Echo, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    server = await serve_tcp(echo.accept, HOST, 0, context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for link in echo.links:
            link.abort()
        await server.wait_closed()
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key, certificate and authority's certificate in one file, as a server has them."""
    return own_certificate(tmp_path_factory.mktemp("tls"), [HOST, "flash.test"]).cert


@pytest.fixture
def authority(certificate: Path) -> str:
    """The authority's certificate (PEM)."""
    return "-----BEGIN CERTIFICATE-----" + certificate.read_text().rpartition("-----BEGIN CERTIFICATE-----")[2]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_calls_of_any_size_go_over_tls_1_3(run: Callable[..., None], certificate: Path, authority: str) -> None:
    """Payloads travel in pieces, whatever their size; it is 1.3; who dials is known by its HELLO alone."""

    async def main() -> None:
        echo, end = Echo(), End()
        async with serving(echo, tls.server_context(certificate, certificate)) as port:
            context = tls.client_context(ca_data=authority)
            link = await dial_tcp(HOST, port, context, end.on_frame, end.on_lost, Hello(1, "client", token="t"))
            assert link.transport is not None
            assert link.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert not link.local
            link.send(Invoke("x", "m.f", payload=bytes(3_000_000)))
            await end.until(lambda: end.frames)
            assert isinstance(end.frames[0], Result)
            assert len(end.frames[0].payload) == 3_000_000
            assert isinstance(echo.frames[0], Hello)
            assert echo.frames[0].token == "t"
            assert echo.links[0].peer_pid == -1
            link.close()
            await end.until(lambda: end.lost)
            await echo.until(lambda: echo.lost)

    run(main())


def test_a_fingerprint_is_all_a_client_needs(certificate: Path, authority: str) -> None:
    """The authority's certificate is fetched from the server and trusted only with that fingerprint."""

    async def main() -> None:
        echo, end = Echo(), End()
        async with serving(echo, tls.server_context(certificate, certificate)) as port:
            wanted = tls.fingerprint(authority)
            written = "sha256:" + ":".join(wanted[at : at + 2] for at in range(0, 64, 2)).upper()
            context = await tls.pinned_context(HOST, port, written.replace("SHA256", "sha256"))
            link = await dial_tcp(HOST, port, context, end.on_frame, end.on_lost)
            link.close()
            await end.until(lambda: end.lost)
            with pytest.raises(tls.UntrustedServer, match="no certificate with fingerprint"):
                await tls.pinned_context(HOST, port, "0" * 64)

    asyncio.run(main())


def test_a_servers_own_certificate_can_be_pinned_too(certificate: Path) -> None:
    """One that it was given: its authority is nobody a client knows. The name still has to be right."""
    _, mark, rest = certificate.read_text().partition("-----BEGIN CERTIFICATE-----")
    own = mark + rest.partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"

    async def main() -> None:
        echo, end = Echo(), End()
        async with serving(echo, tls.server_context(certificate, certificate)) as port:
            context = await tls.pinned_context(HOST, port, tls.fingerprint(own))
            link = await dial_tcp(HOST, port, context, end.on_frame, end.on_lost)
            link.close()
            await end.until(lambda: end.lost)
            with pytest.raises(tls.UntrustedServer):
                await dial_tcp(HOST, port, context, end.on_frame, end.on_lost, server_name="other.test")

    asyncio.run(main())


def test_another_authority_and_another_name_are_refused(certificate: Path, authority: str, tmp_path: Path) -> None:
    """A server with another authority's certificate, or with a certificate for another host, is not the server."""

    async def main() -> None:
        echo, end = Echo(), End()
        other = own_certificate(tmp_path, [HOST]).cert
        theirs = "-----BEGIN CERTIFICATE-----" + other.read_text().rpartition("-----BEGIN CERTIFICATE-----")[2]
        async with serving(echo, tls.server_context(certificate, certificate)) as port:
            with pytest.raises(tls.UntrustedServer, match="cannot be trusted"):
                await dial_tcp(HOST, port, tls.client_context(ca_data=theirs), end.on_frame, end.on_lost)
            mine = tls.client_context(ca_data=authority)
            with pytest.raises(tls.UntrustedServer, match="cannot be trusted"):
                await dial_tcp(HOST, port, mine, end.on_frame, end.on_lost, server_name="elsewhere.test")
            link = await dial_tcp(HOST, port, mine, end.on_frame, end.on_lost, server_name="flash.test")
            link.abort()
            await end.until(lambda: end.lost)

    asyncio.run(main())


def test_nothing_older_than_tls_1_3_is_spoken(certificate: Path, authority: str) -> None:
    """A client of TLS 1.2 gets no connection, and ours makes none to a server of TLS 1.2."""

    async def main() -> None:
        echo, end = Echo(), End()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(cadata=authority)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with serving(echo, tls.server_context(certificate, certificate)) as port:
            with pytest.raises(LinkLost, match="TLS"):
                await dial_tcp(HOST, port, old, end.on_frame, end.on_lost)
        context = tls.server_context(certificate, certificate)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with serving(echo, context) as port:
            with pytest.raises(LinkLost, match="TLS"):
                await dial_tcp(HOST, port, tls.client_context(ca_data=authority), end.on_frame, end.on_lost)

    asyncio.run(main())


def test_a_port_where_nobody_listens_says_so() -> None:
    """LinkLost, with the address; a listener that never answers is given up after the limit."""

    async def main() -> None:
        end = End()
        with socket.create_server((HOST, 0)) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(LinkLost, match=r"did not answer within 0 s"):
                await dial_tcp(HOST, port, ssl.create_default_context(), end.on_frame, end.on_lost, connect_s=0.1)
        with pytest.raises(LinkLost, match=f"Nobody answers at {HOST}:{port}"):
            await dial_tcp(HOST, port, None, end.on_frame, end.on_lost)

    asyncio.run(main())


def test_who_never_finishes_the_handshake_is_dropped(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection to the TLS port does not stay, and no link is made of it."""
    monkeypatch.setattr("flashmesh.wire.connection.HANDSHAKE_S", 0.05)

    async def main() -> None:
        echo = Echo()
        async with serving(echo, tls.server_context(certificate, certificate)) as port:
            reader, writer = await asyncio.open_connection(HOST, port)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            assert echo.frames == []

    asyncio.run(main())


def test_a_silent_link_is_kept_alive_by_pings() -> None:
    """Both ends stay although neither says anything for several times their patience; owners see no PING."""

    async def main() -> None:
        echo, end = Echo(QUICK), End()
        async with serving(echo, None) as port:
            link = await dial_tcp(HOST, port, None, end.on_frame, end.on_lost, keepalive=QUICK)
            await asyncio.sleep(3 * QUICK.patience_s)  # silence is what is tested
            assert link.is_open
            assert (end.frames, echo.frames, end.lost, echo.lost) == ([], [], [], [])
            link.close()
            await end.until(lambda: end.lost)

    asyncio.run(main())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_end_that_was_busy_itself_does_not_take_the_other_for_dead(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A worker whose synchronous call took longer than its patience could not have heard anything."""

    async def main() -> None:
        echo, end = Echo(QUICK), End()
        async with serving(echo, None) as port:
            link = await dial_tcp(HOST, port, None, end.on_frame, end.on_lost, keepalive=QUICK)
            for _ in range(3):
                time.sleep(2 * QUICK.patience_s)  # noqa: ASYNC251 - it is busy
                await asyncio.sleep(2 * QUICK.interval_s)
            assert link.is_open
            assert (end.lost, echo.lost) == ([], [])
            link.close()
            await end.until(lambda: end.lost)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_a_machine_that_vanished_is_noticed() -> None:
    """Nothing answers PING any more, and nothing says that the connection ended: LinkLost after the patience."""

    async def main() -> None:
        end, loop = End(), asyncio.get_running_loop()
        with socket.create_server((HOST, 0)) as listener:
            link = await dial_tcp(HOST, listener.getsockname()[1], None, end.on_frame, end.on_lost, keepalive=QUICK)
            other, _ = listener.accept()
            with other:
                began = loop.time()
                await end.until(lambda: end.lost)
                assert QUICK.patience_s <= loop.time() - began < 20 * QUICK.patience_s
                assert isinstance(end.lost[0], LinkLost)
                assert not link.is_open
                assert b"".join([encode(Ping())]) in other.recv(1000)

    asyncio.run(main())


def test_a_busy_worker_is_not_taken_for_a_dead_one() -> None:
    """Its machine acknowledges what its process is too busy to answer; the kernel is told when to give up."""

    async def main() -> None:
        patient = Keepalive(interval_s=0.02, patience_s=0.1, wants_pong=False)
        echo = Echo(patient)
        async with serving(echo, None) as port:
            with socket.create_connection((HOST, port)) as worker:
                await echo.until(lambda: echo.links)
                await asyncio.sleep(5 * patient.patience_s)  # the worker runs user code
                assert echo.links[0].is_open
                transport = echo.links[0].transport
                assert transport is not None
                if hasattr(socket, "TCP_USER_TIMEOUT"):
                    sock = transport.get_extra_info("socket")
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 100
                worker.send(encode(Started("x")))
                await echo.until(lambda: echo.frames)

    asyncio.run(main())


def test_ping_is_answered_at_once_over_any_link() -> None:
    """PONG, ahead of a payload that waits; over a Unix socket too, where nobody asks."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        end, loop, asides = End(), asyncio.get_running_loop(), []
        link = Link(end.on_frame, end.on_lost)
        await loop.create_unix_connection(lambda: link, sock=ours)
        theirs.send(encode(Ping()))
        reader = FrameReader(on_aside=asides.append)
        assert reader.feed(await loop.sock_recv(theirs, 1000)) == []
        assert asides == [Pong()]
        link.abort()
        await end.until(lambda: end.lost)
        theirs.close()

    asyncio.run(main())


def test_something_else_on_the_port_is_garbage_not_a_hang() -> None:
    """A browser that finds the link's port without TLS ends as LinkProtocolError."""

    async def main() -> None:
        echo = Echo()
        async with serving(echo, None) as port:
            with socket.create_connection((HOST, port)) as browser:
                browser.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await echo.until(lambda: echo.lost)
                assert isinstance(echo.lost[0], LinkProtocolError)

    asyncio.run(main())
