"""Asking a State Manager for the manifest of an environment: what serves now, and where.

The State Manager is `flash server`'s GraphQL, or RunPod's: an environment has an active build, a build has a manifest.
Only reads, so every attempt may be repeated. Blocking, by the standard library: it is asked once in five minutes, and
from a thread where a loop runs.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.project.model import Manifest
from flashmesh.routing.addresses import PLAIN_NETWORKS, Address, AddressRefused, Rules, read_address, rules_of
from flashmesh.routing.connecting import CA_FILE, ca_file_of, client_context, connect
from flashmesh.routing.keys import Keys

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

log = logging.getLogger(__name__)

ATTEMPTS: Final = 3
FIRST_PAUSE_S: Final = 0.5
"""Before the second attempt; doubled before the third, and ± a fifth, so that workers do not ask in step."""
TIMEOUT_S: Final = 10.0
"""Of one request, from its connection to the last byte of its answer."""
MAX_BYTES: Final = 32 * 1024 * 1024
URL: Final = "FLASH_STATE_MANAGER_URL"
ENVIRONMENT_ID: Final = "FLASH_ENVIRONMENT_ID"
RUNPOD_API: Final = "https://api.runpod.io"

_ENVIRONMENT: Final = """\
query getFlashEnvironment($flashEnvironmentId: String!) {
  flashEnvironment(flashEnvironmentId: $flashEnvironmentId) { id name activeBuildId endpoints { id name } }
}"""
_BUILD: Final = """\
query getFlashBuild($flashBuildId: String!) {
  flashBuild(flashBuildId: $flashBuildId) { id manifest }
}"""
_BUILD_HERE: Final = """\
query getFlashBuild($flashBuildId: String!, $flashEnvironmentId: String!) {
  flashBuild(flashBuildId: $flashBuildId, flashEnvironmentId: $flashEnvironmentId) { id manifest }
}"""
"""Of a server of ours, where one build may be deployed in several environments, each with addresses of its own."""
_REPEATED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class StateManagerUnavailable(FlashmeshError):
    """The State Manager did not tell where endpoints are. `flash server status` says whether it runs."""

    code = "STATE_MANAGER_UNAVAILABLE"
    status = 503


class _Again(Exception):
    """An attempt that failed in a way that another one may not. Its text says how, without headers or keys."""


class StateManagerClient:
    """One environment's State Manager.

    Args:
        url: of its GraphQL, by this process's own configuration.
        environment_id: as that State Manager knows it.
        keys: what is shown to it.
        endpoint: who asks, for its count of queries.
        pause: sleeps; jitter: a number from -1 to 1.
    """

    def __init__(
        self,
        url: str,
        *,
        environment_id: str,
        keys: Keys,
        rules: Rules | None = None,
        ca_file: str = "",
        endpoint: str = "",
        timeout_s: float = TIMEOUT_S,
        pause: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),
    ) -> None:
        """Raises AddressRefused: neither https, nor on this machine, nor in a network of FLASH_PLAIN_NETWORKS."""
        self._rules = rules or Rules()
        self._address: Address = read_address(url, self._rules)
        self._environment_id = environment_id
        self._keys = keys
        self._ca_file = ca_file
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._pause = pause
        self._jitter = jitter

    @classmethod
    def of(
        cls, environ: Mapping[str, str], *, endpoint: str = "", keys: Keys | None = None
    ) -> "StateManagerClient | None":
        """The one that the environment names; None where there is none to ask.

        FLASH_STATE_MANAGER_URL, else FLASH_SERVER's; else, where FLASH_ENVIRONMENT_ID came with a RunPod key, RunPod's.
        Raises AddressRefused, SettingsError.
        """
        environment_id = environ.get(ENVIRONMENT_ID, "").strip()
        url = state_manager_url(environ)
        if not url or not environment_id:
            return None
        rules = rules_of(environ.get(PLAIN_NETWORKS, ""))
        return cls(
            url,
            environment_id=environment_id,
            keys=keys or Keys(environ),
            rules=rules,
            ca_file=ca_file_of(environ.get(CA_FILE)),
            endpoint=endpoint,
        )

    @property
    def origin(self) -> str:
        """`scheme://host:port`: who vouches for the addresses in its manifest."""
        return self._address.origin

    def manifest(self, *, attempts: int = ATTEMPTS) -> Manifest:
        """The environment's manifest as of now. Blocks: at most `attempts` times 2 · TIMEOUT_S and the pauses between.

        Raises StateManagerUnavailable.
        """
        for attempt in range(1, attempts + 1):
            try:
                return self._query()
            except _Again as failure:
                log.debug("State Manager at %s: attempt %d of %d: %s", self.origin, attempt, attempts, failure)
                if attempt == attempts:
                    raise StateManagerUnavailable(
                        f"The State Manager at {self.origin} did not answer {attempts} time(s): {failure}. "
                        "`flash server status` says whether it runs."
                    ) from None
            self._pause(pause_s(attempt, self._jitter()))
        raise ValueError(f"attempts is {attempts}; it must be 1 or more.")

    async def manifest_async(self, *, attempts: int = ATTEMPTS) -> Manifest:
        """The same in a loop."""
        return await asyncio.to_thread(partial(self.manifest, attempts=attempts))

    def _query(self) -> Manifest:
        variables = {"flashEnvironmentId": self._environment_id}
        environment = self._one("flashEnvironment", _ENVIRONMENT, variables)
        build = environment.get("activeBuildId")
        if not build:
            raise StateManagerUnavailable(
                f"Nothing is deployed in environment {self._environment_id}. Deploy it: `flash deploy`."
            )
        if self._keys.is_runpods(self._address):
            found = self._one("flashBuild", _BUILD, {"flashBuildId": str(build)})
        else:
            found = self._one("flashBuild", _BUILD_HERE, {"flashBuildId": str(build), **variables})
        return with_endpoints(manifest_of(found.get("manifest")), environment)

    def _one(self, name: str, query: str, variables: Mapping[str, str]) -> Mapping[str, Any]:
        document = self._post({"query": query, "variables": variables})
        if document.get("errors"):
            raise StateManagerUnavailable(
                f"The State Manager at {self.origin} refuses the query of {name}: {_first_message(document['errors'])}"
            )
        data = document.get("data")
        found = data.get(name) if isinstance(data, dict) else None
        if data is None:
            raise _Again("the answer has no data")
        if not isinstance(found, dict):
            raise StateManagerUnavailable(
                f"The State Manager at {self.origin} knows no {name} {next(iter(variables.values()))}. "
                f"Check {ENVIRONMENT_ID}, or deploy again."
            )
        return found

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises _Again, StateManagerUnavailable for an answer that stays the same."""
        import http.client  # 10 ms that workers do not pay which never ask

        try:
            status, text = self._exchange(json.dumps(body).encode())
        except AddressRefused as error:
            raise StateManagerUnavailable(str(error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise _Again(reason) from None
        if status in _REPEATED:
            raise _Again(f"it answered {status}")
        if status != 200:
            raise StateManagerUnavailable(
                f"The State Manager at {self.origin} answered {status}. "
                + ("The key is missing or refused." if status in (401, 403) else "Check its address.")
            )
        try:
            document = json.loads(text)
        except ValueError:
            raise _Again("the answer is not JSON") from None
        if not isinstance(document, dict):
            raise _Again("the answer is not an object")
        return document

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        """One request on a connection of its own. A redirect is not followed: it would take the key along."""
        import http.client

        address, until = self._address, monotonic() + self._timeout_s
        connection = http.client.HTTPConnection(address.host, address.port, timeout=self._timeout_s)
        connection.sock = connect(address, self._rules, seconds=self._timeout_s)
        try:
            if address.scheme == "https":
                context = client_context(self._ca_file)
                connection.sock = context.wrap_socket(connection.sock, server_hostname=address.host)
            connection.request("POST", address.path or "/", body, self._headers(address))
            answer = connection.getresponse()
            return answer.status, _read(answer, connection, until)
        finally:
            connection.close()

    def _headers(self, address: Address) -> dict[str, str]:
        headers = {
            "Host": address.authority,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "flashmesh",
            "Connection": "close",
        }
        if self._endpoint:
            headers["X-Flash-Endpoint"] = self._endpoint
        if key := self._keys.for_configured(address):
            headers["Authorization"] = f"Bearer {key}"
        return headers


def state_manager_url(environ: Mapping[str, str]) -> str:
    """Where the State Manager's GraphQL is, by the environment; empty: nowhere that this process knows of."""
    if named := environ.get(URL, "").strip():
        return named
    if server := environ.get("FLASH_SERVER", "").strip():
        return server.rstrip("/") + "/graphql"
    if environ.get("RUNPOD_API_KEY", "").strip():
        return (environ.get("RUNPOD_API_BASE_URL", "").strip() or RUNPOD_API).rstrip("/") + "/graphql"
    return ""


def pause_s(attempt: int, jitter: float) -> float:
    """Seconds to wait after this attempt (from 1). `jitter`: from -1 to 1."""
    return FIRST_PAUSE_S * 2.0 ** (attempt - 1) * (1 + jitter / 5)


def manifest_of(value: object) -> dict[str, Any]:
    """A build's manifest, which some State Managers send as text. Raises _Again."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise _Again("the build's manifest is not JSON") from None
    if not isinstance(value, dict) or not isinstance(value.get("resources", {}), dict):
        raise _Again("the build has no manifest")
    return value


def with_endpoints(manifest: dict[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the ids of the environment's endpoints, where it has none of its own."""
    ids = {
        str(endpoint["name"]): str(endpoint["id"])
        for endpoint in environment.get("endpoints") or ()
        if isinstance(endpoint, dict) and endpoint.get("name") and endpoint.get("id")
    }
    resources = {
        name: {**entry, "endpoint_id": ids[name]}
        if isinstance(entry, dict) and name in ids and not entry.get("endpoint_id")
        else entry
        for name, entry in manifest.get("resources", {}).items()
    }
    return {**manifest, "resources": resources}


def _read(answer: "HTTPResponse", connection: "HTTPConnection", until: float) -> bytes:
    """The body. Raises OSError when it is too late or too much."""
    parts, size = list[bytes](), 0
    while True:
        left = until - monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        if connection.sock is not None:
            connection.sock.settimeout(left)
        part = answer.read1(65536)
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > MAX_BYTES:
            raise OSError(f"the answer is larger than {MAX_BYTES} bytes")
        parts.append(part)


def _first_message(errors: object) -> str:
    first = errors[0] if isinstance(errors, list) and errors else errors
    text = first.get("message") if isinstance(first, dict) else first
    return " ".join(str(text).split())[:300]
