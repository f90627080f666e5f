"""How commands talk to a server: HTTP with the standard library, the token of wherever the server was found."""

import contextlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

from flashmesh.dev.servers import ServerAddress, server_address
from flashmesh.functions.errors import FlashmeshError

CONNECT_S = 10.0


class NoServer(FlashmeshError):
    """No `flash run` serves this directory or one above it, and no server is known. Start one (`flash run`, `flash
    server`), or say where it is (FLASH_SERVER, `flash login`)."""

    code = "NO_SERVER"


class NothingDeployedHere(NoServer):
    """No server runs on this machine and none is named, so there is nothing deployed to look at or to change. `flash
    deploy` starts one and brings this directory to it, `flash server` only starts it; FLASH_SERVER and `flash login`
    say where another one is."""


class Refused(FlashmeshError):
    """The server refused the request."""

    code = "REFUSED"

    def __init__(self, message: str, *, status: int, body: Any) -> None:
        super().__init__(message)
        self.http_status = status
        self.body = body


class ServerClient:
    """One connection per request: commands make one or two."""

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self._parts = urlsplit(address.url)

    def get(self, path: str, **query: Any) -> Any:
        """The JSON that a GET answers. Raises Refused, NoServer."""
        given = {name: value for name, value in query.items() if value is not None}
        return self.send("GET", path + ("?" + urlencode(given) if given else ""))

    def send(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON of the answer; None for an empty one. Raises Refused for 4xx and 5xx, NoServer."""
        status, document = self.exchange(method, path, body, headers)
        if status >= 400:
            raise Refused(message_of(document, status), status=status, body=document)
        return document

    def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = 330.0,
    ) -> tuple[int, Any]:
        """Status and JSON, whatever the status. Raises NoServer."""
        with self._open(method, path, body, headers, timeout_s) as answer:
            text = answer.read()
        return answer.status, _json(text)

    def upload(self, path: str, file: Path) -> Any:
        """PUT a file, read as it is sent. The JSON of the answer. Raises Refused, NoServer."""
        headers = {"Content-Type": "application/gzip", "Content-Length": str(file.stat().st_size)}
        with file.open("rb") as body, self._open("PUT", path, body, headers, None) as answer:
            document = _json(answer.read())
            if answer.status >= 400:
                raise Refused(message_of(document, answer.status), status=answer.status, body=document)
            return document

    def events(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Server-sent events as they come: (name, data as it was sent). An answer that is no stream raises Refused.

        Closing the iterator closes the connection. Raises NoServer when the connection breaks.
        """
        wanted = {"Accept": "text/event-stream", **(headers or {})}
        with self._open(method, path, body, wanted, None) as answer:
            if not (answer.getheader("content-type") or "").startswith("text/event-stream"):
                document = _json(answer.read())
                raise Refused(message_of(document, answer.status), status=answer.status, body=document)
            name, data = "", list[bytes]()
            while line := answer.readline():
                line = line.rstrip(b"\r\n")
                if line.startswith(b"event: "):
                    name = line[7:].decode()
                elif line.startswith(b"data: "):
                    data.append(line[6:])
                elif not line and data:
                    yield name, b"\n".join(data)
                    name, data = "", []

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        sent = {"Content-Type": "application/json", **self.address.headers(), **(headers or {})}
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, self._parts.path.rstrip("/") + path, body, sent)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NoServer(
                f"The server at {self.address.url} does not answer: {reason}. Start it with `flash server`, "
                "or say where it is with FLASH_SERVER or `flash login`."
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "127.0.0.1", self._parts.port
        context = self.address.ssl_context()
        if context is not None:
            return http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=CONNECT_S)


def message_of(document: Any, status: int) -> str:
    """What a refusal says, in whichever face's words."""
    if isinstance(document, dict):
        error = document.get("error")
        if isinstance(error, dict):
            return str(error.get("message") or error.get("code") or error)
        message = document.get("message")
        return f"{message}" if message else str(error or f"the server answered {status}")
    return f"the server answered {status}"


def path_name(name: str) -> str:
    """A name as a segment of a path."""
    return quote(name, safe="")


def find_server(url: str | None = None, *, none: type[NoServer] = NoServer) -> ServerClient:
    """The server that commands of this directory mean.

    `url` (an option), else FLASH_SERVER, else what `flash login` remembered, else the server of this machine.

    Raises NoServer, as `none` says it where no server is known; and what `server_address` raises.
    """
    env = {**os.environ, "FLASH_SERVER": url} if url else os.environ
    found = server_address(env)
    if found is None:
        raise none(" ".join(str(none.__doc__).split()))
    return ServerClient(found)


def _json(text: bytes) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.decode("utf-8", "replace")
