"""One endpoint of an unpacked build, by itself: what `python handlers/handler_<resource>.py` runs.

For images that somebody else starts: no server, no link. The same keeper, template and workers serve as everywhere, on
one TCP address; the queue is its backlog, and the first call makes the first worker. It ends on SIGTERM and Ctrl-C when
what runs has finished, and when its workers cannot be started.

Variables: PORT (8000); FLASH_HOST (127.0.0.1); FLASH_PUBLIC_KEY (whose tokens count: the second line of the server's
signing.key), FLASH_APP and FLASH_ENV (which of them); FLASH_MANIFEST_PATH (where other endpoints are; default: the
build's own manifest, which does not say). Calls from the loopback need no token, all others do (worker/face/access.py).
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import EndpointUnavailable, FlashmeshError, SettingsError
from flashmesh.kit.ids import EndpointName
from flashmesh.kit.loopback import is_loopback
from flashmesh.project.contents import MANIFEST_NAME
from flashmesh.project.model import ResourceSpec
from flashmesh.project.restored import ManifestInvalid, project_of
from flashmesh.worker.keeper.client import Keeper, KeeperEvent, KeeperLost, TemplateExited
from flashmesh.worker.spec import ModuleSpec, WorkerSpec

DEFAULT_PORT: Final = 8000
DEFAULT_HOST: Final = "127.0.0.1"
CRASH_LOOP: Final = 3
"""Unexpected ends of the template in a row after which nobody need wait any longer."""
_SOCKET: Final = "endpoint.sock"


def main(root: Path, *, resource: str, environ: Mapping[str, str] | None = None) -> int:
    """Serve until told to stop; the exit status."""
    environ = os.environ if environ is None else environ
    folder = Path(tempfile.mkdtemp(prefix="flash-"))
    try:
        spec = spec_of(root, resource, environ, folder)
        return asyncio.run(_Handler(spec, folder).serve())
    except (FlashmeshError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - a program's last word
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spec_of(root: Path, resource: str, environ: Mapping[str, str], folder: Path) -> WorkerSpec:
    """What its workers need, from the build's manifest and the environment.

    folder: a private one with a short path.

    Raises ManifestInvalid, SettingsError.
    """
    found = _resource(root, resource)
    app = environ.get("FLASH_APP", "")
    return WorkerSpec(
        endpoint=found.name,
        build="handler",
        generation=1,
        project_root=str(root),
        sys_path=[str(root)],
        modules=[
            ModuleSpec(module=module, file=str(root / file))
            for module, file in {function.module: function.file for function in found.functions}.items()
        ],
        functions=sorted({name for function in found.functions for name in function.callables}),
        link=str(folder / "no-link"),
        manifest=environ.get("FLASH_MANIFEST_PATH") or str(root / MANIFEST_NAME),
        socket_path=str(folder / _SOCKET),
        config=found.config.to_dict(),
        env={"FLASH_RESOURCE_NAME": found.name},
        environment=f"{app}/{environ.get('FLASH_ENV') or 'production'}" if app else "dev",
        public_key=_public_key(environ.get("FLASH_PUBLIC_KEY", "")),
        tcp=f"http://{environ.get('FLASH_HOST') or DEFAULT_HOST}:{_port(environ.get('PORT', ''))}",
    )


def _resource(root: Path, name: str) -> ResourceSpec:
    try:
        manifest = json.loads((root / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestInvalid(
            f"{root / MANIFEST_NAME} cannot be read ({error}). Build again, and unpack all of it."
        ) from error
    project = project_of(manifest, root)
    found = project.resource(EndpointName(name))
    if found is None:
        raise ManifestInvalid(f"{root / MANIFEST_NAME} has no resource {name}. Build again, and unpack all of it.")
    return found


def _port(text: str) -> int:
    if text and not (text.isdecimal() and int(text) < 65536):
        raise SettingsError(f"PORT must be a number from 0 to 65535, got {text!r}.")
    return int(text or DEFAULT_PORT)


def _public_key(text: str) -> str:
    """As hex, given in that form or in base64."""
    for read in (bytes.fromhex, _from_base64):
        try:
            key = read(text)
        except ValueError:
            continue
        if len(key) in (0, 32):
            return key.hex()
    raise SettingsError(
        "FLASH_PUBLIC_KEY must be 32 bytes in base64: the second line of the server's signing.key, below "
        "$FLASH_HOME/hosts. Never the first: that one signs."
    )


def _from_base64(text: str) -> bytes:
    return b64decode(text, validate=True)


class _Handler:
    """A session of one endpoint and nothing else."""

    def __init__(self, spec: WorkerSpec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._over = asyncio.Event()
        self._failure = ""
        self._stopping = False

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        session_read, session_write = os.pipe()
        try:
            keeper = await Keeper.start(session_read, self._folder, self._on_event)
            try:
                await self._serve(keeper)
            finally:
                self._stopping = True
                await keeper.close(drain_s=self._spec.drain_limit_s)
        finally:
            os.close(session_read)
            os.close(session_write)
        if self._failure:
            raise EndpointUnavailable(self._failure)
        return 0

    async def _serve(self, keeper: Keeper) -> None:
        spec = self._spec
        host, _, port = spec.tcp.removeprefix("http://").rpartition(":")
        queue_size = spec.resource.queue_size
        sockets = await keeper.open(spec.endpoint, self._folder, queue_size=queue_size, tcp=(host, int(port)))
        if sockets.tcp is None:
            raise EndpointUnavailable(
                f"{host}:{port} cannot be listened at: {sockets.tcp_error}. Set PORT or FLASH_HOST."
            )
        address = f"http://{host}:{sockets.tcp[1]}"
        await keeper.start_template(_at(spec, str(sockets.socket_path), address))
        _say(f"{spec.endpoint} answers at {address}")
        if not is_loopback(host) and not spec.public_key and not spec.resource.public:
            _say("Calls from other machines are refused: set FLASH_PUBLIC_KEY to the key whose tokens count.")
        await self._over.wait()

    def _stop(self) -> None:
        self._stopping = True
        self._over.set()

    def _on_event(self, event: KeeperEvent) -> None:
        if self._stopping:
            return
        if isinstance(event, KeeperLost):
            self._fail("the process that starts its workers is gone")
        elif isinstance(event, TemplateExited) and event.status != 0 and event.failures >= CRASH_LOOP:
            self._fail(f"{self._spec.endpoint} cannot be started: {event.reason or 'its template keeps ending'}")

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._over.set()


def _at(spec: WorkerSpec, socket_path: str, address: str) -> WorkerSpec:
    return WorkerSpec.from_dict({**spec.to_dict(), "socket_path": socket_path, "tcp": address})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - where it is started, somebody reads this
