"""Endpoints of deployments on this machine: the Target that a reconciler drives, over a LocalTarget of its own.

They belong to no session. Their keeper outlives the server, so a server that crashes leaves them serving; the next one
takes them over and restarts none. Their place (sockets, keys, tokens) stays as well, and with it every address. A
server that has no deployments makes neither. What workers dial is a link in that place, which each server points to its
own.
"""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from flashmesh.deploy.local.gpus import lacking
from flashmesh.deploy.local.place import SessionPlace, keeper_directory, kept_directory
from flashmesh.deploy.local.placed import Placed, address_of, url_of
from flashmesh.deploy.local.target import LocalTarget
from flashmesh.deploy.target import Deployable, DeployFailed
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.files import write_atomically
from flashmesh.kit.ids import EndpointName
from flashmesh.kit.loopback import is_loopback
from flashmesh.project.manifest import EndpointAddress
from flashmesh.project.model import ResourceSpec
from flashmesh.wire.tokens import TokenRefused, key_id, read_claims
from flashmesh.worker.keeper.client import EndpointSockets
from flashmesh.worker.keeper.detached import KeeperPlace

TARGET: Final = "local"
"""What resources call it."""
HOST: Final = "127.0.0.1"
"""Where endpoints listen unless they are told otherwise."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What deployments need of the server that has them."""

    pointer: Path
    """The file that names their place."""
    link: Path
    """The server's own link, which their workers are to reach."""
    host: str = HOST
    """The address endpoints listen on."""
    plain_networks: tuple[str, ...] = ()
    """Networks (CIDR) beyond the loopback in which endpoints may listen: they speak HTTP without TLS."""
    public_key: bytes = b""
    """The key that signed the tokens endpoints take."""
    revocations: Path | None = None
    token_for: Callable[[str, str], str] = lambda app, environment: ""
    """A `peer` token of an app's environment."""


class LocalDeployments:
    """See `Target` for its guarantees. Everything happens on the server's event loop."""

    def __init__(self, standing: Standing, make_target: Callable[[SessionPlace], LocalTarget]) -> None:
        """`make_target`: makes the target in a place; its keeper must be one that outlives this process."""
        self._standing = standing
        self._make_target = make_target
        self._place: SessionPlace | None = None
        self._local: LocalTarget | None = None

    # Target

    async def deploy(self, wanted: Deployable) -> EndpointAddress:
        self._check_host()
        _check_is_meant(wanted)
        target = self._target()
        await _check_hardware(wanted, target)
        placed = self._placed(wanted)
        resource = _named(wanted)
        first = target.hosted(wanted.endpoint) is None
        try:
            if first:
                await target.declare(resource, wanted.project, wanted.build, placed=placed)
            else:
                await target.open(wanted.endpoint)  # its port may be free again
            self._check_port(wanted.endpoint)
            await target.roll_out(resource, wanted.project, wanted.build, placed)
        except BaseException as error:
            if first:
                await asyncio.shield(self.remove(wanted.endpoint))
            if isinstance(error, FlashmeshError) and not isinstance(error, DeployFailed):
                raise DeployFailed(str(error)) from error
            raise
        return self._address(wanted.endpoint)

    async def resize(self, wanted: Deployable) -> EndpointAddress:
        target = self._target()
        if target.hosted(wanted.endpoint) is None:
            return await self.adopt(wanted)
        with _as_deploy_failed():
            await target.resize(_named(wanted))
        return self._address(wanted.endpoint)

    async def adopt(self, wanted: Deployable) -> EndpointAddress:
        self._check_host()
        target = self._target()
        with _as_deploy_failed():
            await target.declare(_named(wanted), wanted.project, wanted.build, placed=self._placed(wanted))
            await target.settle(wanted.endpoint)
        self._check_port(wanted.endpoint)
        return self._address(wanted.endpoint)

    async def remove(self, endpoint: EndpointName) -> None:
        if self._local is None:
            return
        await self._local.remove(endpoint)
        await self._local.left(endpoint)

    # What else a server says and asks

    async def settle(self) -> None:
        """Once everything that is recorded was adopted: end what an earlier server left and nobody knows any more."""
        directory = kept_directory(self._standing.pointer)
        served = directory is not None and KeeperPlace(keeper_directory(directory)).running() is not None
        if self._local is not None or served:
            await self._target().end_undeclared()

    def target_of(self, endpoint: EndpointName) -> LocalTarget | None:
        """Who makes its workers, if it is one of these."""
        local = self._local
        return local if local is not None and local.hosted(endpoint) is not None else None

    def template_said(self, endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        """What a template said at READY. Whoever has the link passes it on; a rollout waits for that."""
        if self._local is not None:
            self._local.template_said(endpoint, info)

    def sockets(self) -> Mapping[str, EndpointSockets]:
        """Where each of them is reached on this machine."""
        return {} if self._local is None else self._local.sockets()

    async def close(self, drain_s: float, *, keep: bool = False) -> None:
        """End them, giving running calls at most `drain_s` seconds; `keep`: let them serve on for the next server."""
        local, place = self._local, self._place
        if local is None or place is None:
            return
        any_left = bool(local.sockets())
        self._local = self._place = None
        await local.close(drain_s, keep=keep)
        place.close(keep=keep or any_left)
        if not keep and not any_left:
            self._standing.pointer.unlink(missing_ok=True)

    # Making what they stand on

    def _target(self) -> LocalTarget:
        if self._local is None:
            self._place = place = SessionPlace.keep(self._standing.pointer)
            _point(place.link, self._standing.link)
            self._local = self._make_target(place)
        return self._local

    def _placed(self, wanted: Deployable) -> Placed:
        standing = self._standing
        return Placed(
            resource_name=wanted.resource.name,
            app=wanted.app,
            environment=wanted.environment,
            manifest=wanted.manifest,
            tcp=address_of(wanted.address, host=standing.host),
            token_file=self._token_file(wanted.app, wanted.environment),
            public_key=standing.public_key,
            revocations=standing.revocations,
            environ=wanted.environ,
        )

    def _token_file(self, app: str, environment: str) -> Path:
        """The token of an environment's workers, made where there is none that this server's key signed."""
        assert self._place is not None
        folder = self._place.directory / "tokens"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{app}@{environment}"
        if self._standing.public_key and not _is_signed_by(path, self._standing.public_key):
            write_atomically(path, self._standing.token_for(app, environment), mode=0o600)
        return path

    def _check_host(self) -> None:
        """Raises DeployFailed for an address where what is said could be overheard."""
        host = self._standing.host
        if not is_loopback(host) and not _is_within(host, self._standing.plain_networks):
            raise DeployFailed(
                f"Endpoints speak HTTP without TLS, so they cannot listen on {host}. Use a loopback address, or name "
                "the protected network it is in with `--plain-networks`."
            )

    def _check_port(self, endpoint: EndpointName) -> None:
        """Raises DeployFailed when its port is not to be had. It serves at its socket all the same."""
        hosted = self._target().hosted(endpoint)
        if hosted is None or hosted.sockets is None:
            raise DeployFailed(f"{endpoint} has no sockets: the process that opens them could not be started.")
        if hosted.sockets.tcp_error and hosted.tcp is not None:
            host, port = hosted.tcp
            raise DeployFailed(
                f"Port {port} of {host}, where {endpoint} is known, cannot be used ({hosted.sockets.tcp_error}). On "
                "this machine it serves at its socket meanwhile. End the program that has the port (`ss -ltnp` names "
                "it) and restart the server, or undeploy the resource and deploy it again at another port."
            )

    def _address(self, endpoint: EndpointName) -> EndpointAddress:
        hosted = self._target().hosted(endpoint)
        assert hosted is not None and hosted.sockets is not None
        sockets = hosted.sockets
        return EndpointAddress(
            endpoint_id=endpoint,
            endpoint_url=None if sockets.tcp is None else url_of(sockets.tcp),
            peer_urls=(f"unix:{sockets.socket_path}",),
            reentrant_url=f"unix:{sockets.reentrant_path}",
        )


def _check_is_meant(wanted: Deployable) -> None:
    """Raises DeployFailed where another target than this one is declared: it would not be where it is looked for."""
    declared = wanted.resource.config.target
    if declared not in (None, TARGET):
        raise DeployFailed(
            f"It declares the target {declared!r}, which this server does not have; there is only `{TARGET}`: the "
            "server's machine. Take its `target` out of the code or flash.toml, and deploy again."
        )


async def _check_hardware(wanted: Deployable, target: LocalTarget) -> None:
    """Raises DeployFailed where the GPU it declares is missing and nobody said that it may do without."""
    if wanted.allow_cpu or not wanted.resource.config.gpus:
        return
    missing = lacking(wanted.resource.config, await target.gpus())
    if missing is not None:
        raise DeployFailed(
            f"It cannot be served here: {missing}. `flash deploy --allow-cpu` serves it on what is here."
        )


def _named(wanted: Deployable) -> ResourceSpec:
    """The resource as dispatcher, keeper and link know it: by the endpoint's id."""
    return dataclasses.replace(wanted.resource, name=wanted.endpoint)


@contextlib.contextmanager
def _as_deploy_failed() -> Any:
    try:
        yield
    except DeployFailed:
        raise
    except FlashmeshError as error:
        raise DeployFailed(str(error)) from error


def _point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, in one step: somebody may be dialling."""
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    temporary.symlink_to(target)
    temporary.replace(link)


def _is_signed_by(path: Path, public_key: bytes) -> bool:
    """Whether the file holds a token that says it is of that key. Nobody else can write there."""
    try:
        return read_claims(path.read_bytes().strip()).iss == key_id(public_key)
    except (OSError, TokenRefused):
        return False


def _is_within(host: str, networks: tuple[str, ...]) -> bool:
    try:
        return any(ip_address(host) in ip_network(network) for network in networks)
    except ValueError:
        return False
