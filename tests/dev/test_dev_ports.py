"""The port: 8888, else the next free one; a port that was asked for is taken or refused, never replaced."""

import socket

import pytest

from flashmesh.dev.session import ports
from flashmesh.dev.session.ports import PortTaken, listen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_taken_default_port_gives_the_next_free_one_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "DEFAULT_PORT", free_port())
    with listen("127.0.0.1", None).socket:
        second = listen("127.0.0.1", None)
        with second.socket:
            assert second.port > ports.DEFAULT_PORT
            assert second.instead_of == ports.DEFAULT_PORT


def test_a_taken_port_that_was_asked_for_is_an_error_with_the_way_out() -> None:
    port = free_port()
    with listen("127.0.0.1", port).socket, pytest.raises(PortTaken, match=f"Port {port} .* Leave out `--port`"):
        listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused_in_words() -> None:
    with pytest.raises(Exception, match=r"Cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "localhost"), ("0.0.0.0", "localhost")])
def test_the_url_is_one_a_browser_opens(host: str, shown: str) -> None:
    with (found := listen(host, 0)).socket:
        assert found.url == f"http://{shown}:{found.port}"
