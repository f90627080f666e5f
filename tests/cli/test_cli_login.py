"""`flash login`, and which server commands use."""

import dataclasses
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flashmesh.cli.commands import flash
from flashmesh.dev.servers import LoginFailed, ServerAddress, server_address
from flashmesh.functions.errors import InsecureAddress
from flashmesh.gateway.access.certificates import own_certificate, server_ssl_context
from flashmesh.gateway.access.gate import AccessGate
from flashmesh.gateway.access.pages import PageRules
from flashmesh.gateway.access.tokens import Tokens
from flashmesh.gateway.data import ServerFile, start_time
from flashmesh.gateway.http import Answer
from flashmesh.kit.machine import host_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FLASH_SERVER", "FLASH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLASH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Far:
    """A server of another machine, as much of it as logging in sees: its gate, over real HTTP."""

    def __init__(self, folder: Path, host: str) -> None:
        folder.mkdir()
        self.tokens = Tokens(folder)
        self.gate = AccessGate(PageRules.make(host=host), self.tokens)
        self.own = own_certificate(folder, ["localhost", "127.0.0.1"])
        self.shown: list[tuple[str, str | None]] = []
        """Paths that were asked for, and the Authorization header with each."""
        self.redirect: str | None = None

    @contextmanager
    def serving(self, *, tls: bool = False) -> Iterator[str]:
        far = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                far.shown.append((self.path, self.headers.get("Authorization")))
                raw = {name.lower().encode(): value.encode() for name, value in self.headers.items()}
                found = far.gate.check(b"GET", self.path.encode(), b"", raw)
                refused = isinstance(found, Answer)
                self.send_response(302 if far.redirect else found.status if isinstance(found, Answer) else 200)
                if far.redirect:
                    self.send_header("location", far.redirect)
                self.end_headers()
                self.wfile.write(found.body if refused and isinstance(found, Answer) else b"[]")

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that do not trust us hang up in the handshake

        with Server(("127.0.0.1", 0), Handler) as server:
            if tls:
                context = server_ssl_context(self.own.cert, self.own.key)
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far", "0.0.0.0")


def login(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(flash, ["login", *arguments], input=stdin)


def test_a_server_and_its_token_are_kept_for_this_user_alone(home: Path, far: Far) -> None:
    token = far.tokens.keys.issue("ada", "call")[0]
    with far.serving() as url:
        done = login(url, "--token", "-", stdin=token + "\n")
    assert done.exit_code == 0
    assert "as ada (call)" in done.stderr
    assert token not in done.output
    assert server_address() == ServerAddress(url=url, token=token, source="flash login")
    assert (home / "login.json").stat().st_mode & 0o777 == 0o600


def test_a_token_that_is_refused_is_not_kept(home: Path, far: Far) -> None:
    with far.serving() as url:
        done = login(url, "--token", "wrong")
    assert done.exit_code == 1
    assert "refuses" in done.stderr and "flash token create" in done.stderr
    assert server_address() is None


def test_a_good_token_that_may_not_read_functions_is_kept(home: Path, far: Far) -> None:
    with far.serving() as url:
        assert login(url, "--token", far.tokens.keys.issue("prom", "metrics")[0]).exit_code == 0


def test_a_server_of_this_machine_needs_no_token(home: Path, tmp_path: Path) -> None:
    with Far(tmp_path / "near", "127.0.0.1").serving() as url:
        assert login(url).exit_code == 0
    assert server_address() == ServerAddress(url=url, source="flash login")


def test_a_server_that_does_not_answer_is_not_kept(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = login(f"127.0.0.1:{port}")
    assert done.exit_code == 1
    assert "does not answer" in done.stderr and "flash server" in done.stderr


def test_something_else_that_answers_is_not_taken_for_a_server(home: Path, far: Far) -> None:
    far.redirect = "http://127.0.0.1:1/"
    with far.serving() as url:
        done = login(url, "--token", "t")
    assert done.exit_code == 1
    assert "no server of ours" in done.stderr
    assert far.shown == [("/healthz", None)]  # no redirect was followed, and no token shown


def test_a_token_never_goes_over_an_open_network_in_clear(home: Path) -> None:
    done = login("http://192.0.2.1:7470", "--token", "t")
    assert done.exit_code == 1
    assert "https" in done.stderr


def test_an_unknown_certificate_is_not_trusted_and_the_answer_shows_how_to_pin_it(home: Path, far: Far) -> None:
    token = far.tokens.keys.issue("ada", "call")[0]
    with far.serving(tls=True) as url:
        done = login(url, "--token", token)
    assert done.exit_code == 1
    assert f"--fingerprint {far.own.fingerprint}" in done.stderr
    assert far.shown == []


def test_a_pinned_certificate_is_trusted_from_then_on(home: Path, far: Far) -> None:
    token = far.tokens.keys.issue("ada", "call")[0]
    with far.serving(tls=True) as url:
        assert login(url, "--token", token, "--fingerprint", far.own.fingerprint).exit_code == 0
        address = server_address()
        assert address is not None
        context = address.ssl_context()
        assert context is not None
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        with (
            socket.create_connection(place) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            assert secured.version() == "TLSv1.3"
        other = ssl.create_default_context()
        with socket.create_connection(place) as plain, pytest.raises(ssl.SSLCertVerificationError):
            other.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_wrong_fingerprint_ends_it_before_anything_is_sent(home: Path, far: Far) -> None:
    with far.serving(tls=True) as url:
        done = login(url, "--token", "t", "--fingerprint", "ab" * 32)
    assert done.exit_code == 1
    assert "somebody is in between" in done.stderr
    assert far.shown == []


@pytest.mark.parametrize("url", ["https://a:b@box.lan", "https://box.lan/path", "https://", "box.lan/x?y"])
def test_what_is_no_servers_address_is_a_usage_error(home: Path, url: str) -> None:
    assert login(url, "--token", "t").exit_code == 2


def test_without_a_terminal_the_option_for_the_token_is_named(home: Path, far: Far) -> None:
    with far.serving() as url:
        done = login(url.replace("127.0.0.1", "localhost"))
    assert done.exit_code == 1  # of this machine, so it is tried without, and the server says what is missing
    assert "needs a token" in done.stderr


def test_login_alone_shows_the_server_and_forgetting_it_leads_back(home: Path, far: Far) -> None:
    token = far.tokens.keys.issue("ada", "call")[0]
    with far.serving() as url:
        login(url, "--token", token)
        shown = login()
    assert shown.stdout == url + "\n"
    assert "flash login" in shown.stderr
    assert login("--forget").exit_code == 0
    done = login()
    assert done.exit_code == 1
    assert "flash server" in done.stderr


# Which server commands use


def local_server(home: Path, *, pid: int | None = None, url: str = "http://127.0.0.1:7470") -> str:
    """A server of this machine that says it runs; returns its admin token."""
    folder = host_folder(home)
    tokens = Tokens(folder)
    pid = os.getpid() if pid is None else pid
    (folder / "server").mkdir(exist_ok=True)
    said = {"pid": pid, "start_time": start_time(pid), "url": url}
    document = {field.name: said.get(field.name, "") for field in dataclasses.fields(ServerFile)}
    (folder / "server" / "server.json").write_text(json.dumps(document))
    return tokens.admin_token


def test_nothing_is_known_and_nothing_is_made_where_no_server_ran(home: Path) -> None:
    assert server_address() is None
    assert not home.exists()


def test_the_server_of_this_machine_is_used_with_its_admin_token(home: Path) -> None:
    token = local_server(home)
    assert server_address() == ServerAddress(url="http://127.0.0.1:7470", token=token, source="this machine")


def test_a_server_that_is_gone_is_not_used(home: Path) -> None:
    local_server(home, pid=2**22 + 1)
    assert server_address() is None


def test_the_servers_own_certificate_is_trusted_on_its_machine(home: Path) -> None:
    local_server(home, url="https://127.0.0.1:7470")
    own_certificate(host_folder(home), ["127.0.0.1"])
    address = server_address()
    assert address is not None and address.anchor is not None
    assert address.anchor.count("BEGIN") == 1 and "PRIVATE" not in address.anchor
    assert address.ssl_context() is not None


def test_a_login_wins_over_the_server_of_this_machine(home: Path) -> None:
    local_server(home)
    (home / "login.json").write_text(json.dumps({"url": "https://box.lan:7470", "token": "t", "anchor": None}))
    assert server_address() == ServerAddress(url="https://box.lan:7470", token="t", source="flash login")


def test_flash_server_wins_over_both_and_takes_flash_token(home: Path) -> None:
    local_server(home)
    (home / "login.json").write_text(json.dumps({"url": "https://box.lan:7470", "token": "t", "anchor": None}))
    environment = {"FLASH_HOME": str(home), "FLASH_SERVER": "https://ci.lan:7470/", "FLASH_TOKEN": "mine"}
    assert server_address(environment) == ServerAddress(url="https://ci.lan:7470", token="mine")


def test_flash_token_goes_to_flash_server_only(home: Path) -> None:
    token = local_server(home)
    environment = {"FLASH_HOME": str(home), "FLASH_TOKEN": "mine"}
    found = server_address(environment)
    assert found is not None and found.token == token
    (home / "login.json").write_text(json.dumps({"url": "https://box.lan:7470", "token": "t", "anchor": None}))
    found = server_address(environment)
    assert found is not None and found.token == "t"


def test_no_other_servers_token_goes_to_flash_server(home: Path) -> None:
    local_server(home)
    (home / "login.json").write_text(json.dumps({"url": "https://box.lan:7470", "token": "t", "anchor": "pem"}))
    environment = {"FLASH_HOME": str(home)}
    for url in ("https://box.lan:7471", "https://evil.lan:7470", "http://127.0.0.1:7471", "http://localhost:7470"):
        assert server_address({**environment, "FLASH_SERVER": url}) == ServerAddress(url=url)
    known = server_address({**environment, "FLASH_SERVER": "https://box.lan:7470"})
    assert known == ServerAddress(url="https://box.lan:7470", token="t", anchor="pem")


def test_flash_server_must_be_https_or_of_this_machine(home: Path) -> None:
    with pytest.raises(InsecureAddress):
        server_address({"FLASH_HOME": str(home), "FLASH_SERVER": "http://box.lan:7470", "FLASH_TOKEN": "t"})


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null"])
def test_a_damaged_login_says_how_to_mend_it(home: Path, text: str) -> None:
    home.mkdir()
    (home / "login.json").write_text(text)
    with pytest.raises(LoginFailed, match="flash login URL"):
        server_address()


def test_tokens_are_in_no_representation() -> None:
    assert "s3cret" not in repr(ServerAddress(url="https://box.lan", token="s3cret"))
