"""Where a script's calls go: to the server on which its project is deployed, or to workers here. Decided once.

FLASH_SERVER names one and is obeyed: what it does not have is an error. What `flash login` remembered, and a server
that runs on this machine, are used when this project is deployed there, and passed over when it is not: nobody has
asked for them in this program. A RunPod key alone is no road.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from flashmesh.dev.servers import ServerAddress, local_server, logged_in_server, server_address
from flashmesh.functions.errors import EndpointUnreachable, ServerRequired
from flashmesh.kit.home import flash_home
from flashmesh.project.appname import app_name
from flashmesh.routing.addresses import Address, Rules, read_address
from flashmesh.worker.calls.exchange import exchange_blocking
from flashmesh.worker.calls.network import Network

ASK_S: Final = 10.0
_MARKS: Final = ("flash.toml", "pyproject.toml", ".flash")
"""What stands in the first directory of a project."""


class Server:
    """A server as a script asks it: HTTP with the token that belongs to it."""

    def __init__(self, named: ServerAddress) -> None:
        """Raises AddressRefused."""
        self.url = named.url
        self.source = named.source
        self.address: Address = read_address(named.url, Rules())
        self.network = Network(make_context=lambda: _context(named))
        self.token = named.token or ""
        self._bearer = f"Authorization: Bearer {named.token}\r\n" if named.token else ""

    def request(self, method: str, path: str, headers: str = "", body: bytes = b"") -> bytes:
        """A request as bytes. `headers`: lines."""
        length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
        head = (
            f"{method} {self.address.path}{path} HTTP/1.1\r\nHost: {self.address.authority}\r\n"
            f"User-Agent: flashmesh\r\n{self._bearer}{headers}{length}\r\n"
        )
        return head.encode("latin-1") + body

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON. Blocks. Raises EndpointUnreachable, WaitTimedOut, WorkerLost."""
        response, body = exchange_blocking(self.address, self.request("GET", path), seconds=ASK_S, network=self.network)
        try:
            return response.status, msgspec.json.decode(body) if body else None
        except msgspec.DecodeError:
            return response.status, None

    def close(self) -> None:
        self.network.close()


@dataclass(frozen=True, slots=True)
class Road:
    """A server that has the project deployed. `root`: the project's directory here."""

    server: Server
    root: Path
    app: str
    environment: str
    manifest: Mapping[str, Any]

    @property
    def line(self) -> str:
        """What is said once."""
        return (
            f"Calls of this script go to {self.server.url} (named by {self.server.source}), "
            f"app {self.app}, environment {self.environment}"
        )


@dataclass(frozen=True, slots=True)
class Here:
    """Workers of this machine. `line`: what is said once; empty where there was nothing to choose from."""

    line: str = ""


def find_road(environ: Mapping[str, str] | None = None, *, root: Path | None = None) -> Road | Here:
    """Ask the servers that could be meant, in their order. Blocks for one answer of each.

    Raises:
        ServerRequired: FLASH_SERVER does not have the project, or refuses.
        EndpointUnreachable: FLASH_SERVER, or the one that `flash login` named, does not answer.
        LoginFailed, InsecureAddress: what names a server cannot be used.
    """
    environ = os.environ if environ is None else environ
    root = project_root() if root is None else root
    named = bool(environ.get("FLASH_SERVER", "").strip())
    passed = []
    for address in _candidates(environ, named):
        server = Server(address)
        found = _ask(server, root, environ)
        if isinstance(found, Road):
            return found
        server.close()
        if named:
            raise ServerRequired(f"{found} Deploy it there: `flash deploy`; or unset FLASH_SERVER to run it here.")
        passed.append(found)
    return Here(" ".join((*passed, "Calls of this script run in workers on this machine")) if passed else "")


def project_root() -> Path:
    """The directory of the project that the program belongs to.

    The nearest one at or above its file with a flash.toml, pyproject.toml or .flash; else the current directory when
    the file is below it, else the file's own.
    """
    here = Path.cwd()
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(main, str) or main.startswith("<"):
        return here
    folder = Path(main).resolve().parent
    home = Path.home()
    for candidate in (folder, *folder.parents):
        if candidate == home or candidate == candidate.parent:
            break
        if any((candidate / mark).exists() for mark in _MARKS):
            return candidate
    return here if folder.is_relative_to(here) else folder


def _candidates(environ: Mapping[str, str], named: bool) -> list[ServerAddress]:
    if named:
        found = server_address(environ)
        return [found] if found is not None else []
    home = flash_home(environ)
    if not home.exists():
        return []  # no server ever ran here, and nobody logged in: nothing has to be imported to know that
    login = logged_in_server(home)
    local = local_server(home, environ)
    both = [login, None if login is not None and local is not None and login.url == local.url else local]
    return [address for address in both if address is not None]


def _ask(server: Server, root: Path, environ: Mapping[str, str]) -> Road | str:
    """The road, or a sentence that says why it is none. Raises EndpointUnreachable, but for this machine's server."""
    app = environ.get("FLASH_APP", "").strip() or app_name(root)
    environment = environ.get("FLASH_ENV", "").strip()
    query = urlencode({"app": app, **({"env": environment} if environment else {})})
    try:
        status, document = server.get(f"/manifest?{query}")
    except (EndpointUnreachable, TimeoutError) as error:
        if server.source == "this machine":
            return "The server of this machine does not answer."
        raise EndpointUnreachable(f"{server.url} (named by {server.source}) does not answer: {error}") from error
    if status == 200 and isinstance(document, dict) and document.get("resources"):
        told = str(document.get("environment") or environment or "production")
        return Road(server, root, str(document.get("app") or app), told, document)
    if status in (401, 403):
        raise ServerRequired(
            f"{server.url} (named by {server.source}) refuses to tell what is deployed ({status}). "
            "Log in with another token: `flash login URL --token -`."
        )
    where = f"app {app}" + (f", environment {environment}" if environment else "")
    return f"Nothing is deployed on {server.url} (named by {server.source}) for {where}."


def _context(named: ServerAddress) -> Any:
    from flashmesh.gateway.access.pinning import client_ssl_context

    return client_ssl_context(named.anchor)
