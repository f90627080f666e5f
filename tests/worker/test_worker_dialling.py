"""How a worker is told where its server is."""

import asyncio
import socket
from pathlib import Path

import pytest

from flashmesh.functions.errors import LinkLost
from flashmesh.wire.connection import TCP_REDIAL_S, Link
from flashmesh.worker.dialling import UNIX_REDIAL_S, LinkMisconfigured, dialling


def nowhere() -> Link:
    return Link(lambda link, frame: None, lambda link, error: None)


def test_without_variables_it_dials_the_socket_of_its_spec(tmp_path: Path) -> None:
    """No token: the kernel says who it is."""
    road = dialling(str(tmp_path / "link.sock"), {})
    assert (road.token(), road.redial_s) == ("", UNIX_REDIAL_S)
    with pytest.raises(LinkLost, match=r"link\.sock"):
        asyncio.run(road.connect(nowhere()))


def test_an_address_means_tcp_and_its_longer_pauses() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        environ = {
            "FLASH_LINK_ADDRESS": f"127.0.0.1:{port}",
            "FLASH_LINK_TOKEN": "secret",
            "FLASH_LINK_FINGERPRINT": "sha256:00",
        }
        road = dialling("/link.sock", environ)
        assert (road.token(), road.redial_s) == ("secret", TCP_REDIAL_S)
        with pytest.raises(LinkLost, match=f"127.0.0.1:{port}"):
            asyncio.run(road.connect(nowhere()))


def test_processes_that_user_code_starts_do_not_inherit_the_token() -> None:
    environ = {"FLASH_LINK_ADDRESS": "h:1", "FLASH_LINK_TOKEN": "secret", "FLASH_LINK_TLS": "0"}
    assert dialling("/link.sock", environ).token() == "secret"
    assert "secret" not in environ.values()


def test_a_token_that_is_renewed_in_its_file_is_shown_the_next_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    environ = {"FLASH_LINK_ADDRESS": "[::1]:7471", "FLASH_LINK_TOKEN_FILE": str(file), "FLASH_LINK_TLS": "0"}
    road = dialling("/link.sock", environ)
    assert road.token() == "one"
    file.write_text("two\n")
    assert road.token() == "two"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"FLASH_LINK_ADDRESS": "server"}, "FLASH_LINK_ADDRESS"),
        ({"FLASH_LINK_ADDRESS": "server:99999"}, "FLASH_LINK_ADDRESS"),
        ({"FLASH_LINK_ADDRESS": ":7471"}, "FLASH_LINK_ADDRESS"),
        ({"FLASH_LINK_TOKEN": ""}, "FLASH_LINK_TOKEN"),
        ({"FLASH_LINK_TOKEN": "", "FLASH_LINK_TOKEN_FILE": "/none/such"}, "FLASH_LINK_TOKEN_FILE"),
        ({"FLASH_LINK_FINGERPRINT": ""}, "FLASH_LINK_FINGERPRINT"),
        ({"FLASH_LINK_FINGERPRINT": "", "FLASH_LINK_CA": "/none/such"}, "FLASH_LINK_CA"),
        ({"FLASH_LINK_FINGERPRINT": "", "FLASH_LINK_CA": __file__}, "FLASH_LINK_CA"),
    ],
)
def test_variables_that_do_not_fit_together_are_named(changes: dict[str, str], named: str) -> None:
    environ = {"FLASH_LINK_ADDRESS": "server:7471", "FLASH_LINK_TOKEN": "t", "FLASH_LINK_FINGERPRINT": "sha256:00"}
    with pytest.raises(LinkMisconfigured, match=named):
        dialling("/link.sock", environ | changes)
