"""The session's side of the keeper: starts or finds it, asks for sockets and templates, hears what happens to them."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmesh.functions.errors import EndpointUnavailable
from flashmesh.worker.keeper import detached
from flashmesh.worker.keeper.child import KEEPER_COMMAND, TEMPLATE_COMMAND, KeeperChild
from flashmesh.worker.keeper.detached import KeeperPlace
from flashmesh.worker.spec import WorkerSpec, reentrant_path

LINE_LIMIT = 256 * 1024 * 1024
"""The longest line the keeper may send: the specs of all its endpoints are one."""


@dataclass(frozen=True, slots=True)
class EndpointSockets:
    """Where peers reach an endpoint, and where calls go that come back to it."""

    socket_path: Path
    reentrant_path: Path
    tcp: tuple[str, int] | None = None
    """Host and port of its TCP socket, if it has one."""
    tcp_error: str = ""
    """Why it has none though one was asked for."""
    tcp_unknown: bool = False
    """It was opened after the template that runs, which does not have it: the next one will."""


@dataclass(frozen=True, slots=True)
class TemplateExited:
    """A template ended. `status` 0 = it had nothing to do; negative = signal.

    `reason` is empty for an end that was asked for or needs no explanation; `failures` counts unexpected ends in a row.
    """

    endpoint: str
    pid: int
    status: int
    failures: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TemplateWanted:
    """A peer connected while no template ran. `started`: the keeper started it, on the last spec it was given."""

    endpoint: str
    started: bool


@dataclass(frozen=True, slots=True)
class KeeperLost:
    """The keeper is gone, its templates are draining. Start another one; sockets must be opened anew."""


@dataclass(frozen=True, slots=True)
class KeptEndpoint:
    """An endpoint that a keeper had when it was taken over.

    `spec` is what it starts, None = it was never told; `template_pid` 0 = none runs; `failures` as in TemplateExited.
    """

    endpoint: str
    sockets: EndpointSockets
    spec: WorkerSpec | None
    template_pid: int
    failures: int


KeeperEvent = TemplateExited | TemplateWanted | KeeperLost


class Keeper:
    """A running keeper. All methods raise EndpointUnavailable when it is gone or cannot do what is asked.

    Two kinds: the child of a session, which ends with it (`start`), and one that outlives its server, serves on without
    one, and is taken over by the next (`start_detached`, `adopt`).

    Attributes:
        kept: what it had when it was taken over.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes] | None", on_event: Callable[[KeeperEvent], None], pid: int = 0
    ) -> None:
        self.pid = process.pid if process is not None else pid
        self.kept: list[KeptEndpoint] = []
        self._process = process
        self._on_event = on_event
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._listening: asyncio.Task[None]
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._refusal = ""
        self._greeted = asyncio.Event()
        """A detached keeper has said whether it takes us. What is said to one that refuses may destroy its answer."""
        self._closing = False
        self.lost = False

    @classmethod
    async def start(
        cls,
        session_pipe_fd: int,
        runtime_dir: Path,
        on_event: Callable[[KeeperEvent], None],
        *,
        template_command: Sequence[str] = TEMPLATE_COMMAND,
    ) -> "Keeper":
        """Start one as a child of this process, which must be its session.

        Call it from the main thread. `session_pipe_fd` is the read end of the session pipe, whose write end only the
        session holds. `on_event` is called from the event loop.
        """
        child = KeeperChild(session_pipe_fd, runtime_dir, template_command=template_command)
        return await cls.take(child, on_event)

    @classmethod
    async def take(cls, child: KeeperChild, on_event: Callable[[KeeperEvent], None]) -> "Keeper":
        """Speak from now on to one that was started as a child of this process. `on_event` as in `start`."""
        keeper = cls(child.process, on_event)
        child.control.setblocking(False)
        await keeper._attach(child.control)
        return keeper

    @classmethod
    async def start_detached(
        cls,
        directory: Path,
        on_event: Callable[[KeeperEvent], None],
        *,
        template_command: Sequence[str] = TEMPLATE_COMMAND,
    ) -> "Keeper":
        """Start one that outlives this process. It is found again in `directory`, whose path must be short.

        Raises EndpointUnavailable when one runs there already, or this one does not start.
        """
        await asyncio.to_thread(detached.start, KeeperPlace(directory), KEEPER_COMMAND, template_command)
        keeper = await cls.adopt(directory, on_event)
        if keeper is None:
            raise EndpointUnavailable(f"the keeper ended at once. {KeeperPlace(directory).log} tells more")
        return keeper

    @classmethod
    async def adopt_or_start(
        cls,
        directory: Path,
        on_event: Callable[[KeeperEvent], None],
        *,
        template_command: Sequence[str] = TEMPLATE_COMMAND,
    ) -> "Keeper":
        """The keeper that serves in `directory`, or a new one. Raises as `adopt` and `start_detached`."""
        found = await cls.adopt(directory, on_event)
        return found or await cls.start_detached(directory, on_event, template_command=template_command)

    @classmethod
    async def adopt(cls, directory: Path, on_event: Callable[[KeeperEvent], None]) -> "Keeper | None":
        """Take over the keeper that serves in `directory`; None when none does.

        `kept` tells what it has. Peers that wait for an endpoint it cannot start are told as TemplateWanted.

        Raises EndpointUnavailable while another server is connected to it, and when it lives and does not answer.
        """
        place = KeeperPlace(directory)
        sock = await asyncio.to_thread(place.connect_or_gone)
        if sock is None:
            return None
        keeper = cls(None, on_event)
        keeper._closing = True  # a keeper that does not let us in was not lost
        await keeper._attach(sock)
        try:
            async with asyncio.timeout(detached.ANSWER_S):
                await keeper._greeted.wait()
                state = await keeper._ask("state")
        except TimeoutError as error:
            await keeper.close(keep=True)
            raise EndpointUnavailable(
                f"the keeper in {directory} does not answer. End it (process {place.running()}) and start again"
            ) from error
        except EndpointUnavailable:
            await keeper._listening
            raise
        keeper._closing = False
        keeper.pid = state["pid"]
        keeper.kept = [_kept(endpoint) for endpoint in state["endpoints"]]
        for endpoint in state["endpoints"]:
            if endpoint["wanted"]:
                on_event(TemplateWanted(endpoint["endpoint"], started=False))
        return keeper

    async def _attach(self, sock: socket.socket) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=LINE_LIMIT)
        self._listening = asyncio.create_task(self._listen(), name="keeper")

    async def open(
        self, endpoint: str, socket_dir: Path, *, queue_size: int = 1000, tcp: tuple[str, int] | None = None
    ) -> EndpointSockets:
        """Make the endpoint's listening sockets. Asking again gives the same ones, wherever they are.

        tcp: host and port of one to have besides; port 0: any. That it cannot be had is told in `tcp_error`.
        """
        path = str(socket_dir / f"{_file_name(endpoint)}.sock")
        answer = await self._ask(
            "open", endpoint=endpoint, path=path, again_path=reentrant_path(path), backlog=max(1, queue_size), tcp=tcp
        )
        return _sockets(answer)

    async def remember(self, spec: WorkerSpec) -> None:
        """Start this from now on when a peer connects; does not touch a running template."""
        await self._ask("remember", endpoint=spec.endpoint, spec=spec.to_dict())

    async def start_template(self, spec: WorkerSpec, *, trial: bool = False) -> int:
        """Start the endpoint's template if none runs; returns its pid. Waits out the pause after repeated deaths.

        trial: what peers start later is still what was remembered.
        """
        answer = await self._ask("start", endpoint=spec.endpoint, spec=spec.to_dict(), trial=trial)
        return int(answer["pid"])

    async def stop_template(self, endpoint: str, *, drain_s: float = 30) -> None:
        """Let it finish what runs, at most `drain_s`, and wait for its end. Peers that connect later start it again."""
        await self._ask("stop", endpoint=endpoint, drain_s=drain_s)

    async def close_endpoint(self, endpoint: str, *, drain_s: float = 30) -> None:
        """The same, and remove its sockets."""
        await self._ask("close", endpoint=endpoint, drain_s=drain_s)

    async def close(self, *, drain_s: float = 30, keep: bool = False) -> None:
        """Stop every template, at most `drain_s` for what runs, then the keeper; returns when all are gone.

        With `keep` a detached keeper is only let go: everything serves on, and `adopt` finds it. (A session's own
        keeper cannot be kept: it ends with the session.)
        """
        self._closing = True
        if keep and self._process is None:
            self._writer.close()
        elif not self.lost:
            try:
                await self._ask("end", drain_s=drain_s)
            except EndpointUnavailable:
                pass  # gone already, which is what we want
        await self._listening

    async def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        if self._refusal or self.lost:
            raise EndpointUnavailable(self._refusal or "The keeper is gone; the next call starts another one.")
        self._last_id += 1
        number = self._last_id
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "op": operation, **arguments}).encode() + b"\n")
        try:
            answer: dict[str, Any] = await future
        finally:
            self._answers.pop(number, None)
        if "error" in answer:
            raise EndpointUnavailable(
                f"The keeper could not {operation} {arguments.get('endpoint', '')}: {answer['error']}"
            )
        return answer

    async def _listen(self) -> None:
        """Until the keeper closes its end. Then it is reaped, and whoever waits for an answer is told."""
        try:
            while line := await self._reader.readline():
                self._hear(json.loads(line))
        except ConnectionError:
            pass
        self.lost = True
        self._greeted.set()
        self._writer.close()
        for future in self._answers.values():
            if not future.done():
                future.set_result({"error": "it is gone; the next call starts another one"})
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)  # it has closed its socket: its end is a matter of microseconds
        if not self._closing:
            self._on_event(KeeperLost())

    def _hear(self, message: dict[str, Any]) -> None:
        if "id" in message:
            future = self._answers.get(message["id"])
            if future is not None and not future.done():
                future.set_result(message)
            return
        if "event" not in message:
            self._refusal = message.get("refused", "")
            self._greeted.set()
            return
        kind = message.pop("event")
        self._on_event(TemplateExited(**message) if kind == "template_exited" else TemplateWanted(**message))


def _kept(told: dict[str, Any]) -> KeptEndpoint:
    spec = WorkerSpec.from_dict(told["spec"]) if told["spec"] is not None else None
    return KeptEndpoint(told["endpoint"], _sockets(told), spec, told["template"], told["failures"])


def _sockets(told: dict[str, Any]) -> EndpointSockets:
    path, again_path = told["paths"]
    return EndpointSockets(
        Path(path),
        Path(again_path),
        None if told["tcp"] is None else (told["tcp"][0], told["tcp"][1]),
        told.get("tcp_error", ""),
        told.get("tcp_unknown", False),
    )


def _file_name(endpoint: str) -> str:
    """A short, plain name for the socket: Unix allows 107 bytes for the whole path."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "_" for letter in endpoint)
    if plain == endpoint and len(plain) <= 40:
        return plain
    from zlib import crc32

    return f"{plain[:31]}-{crc32(os.fsencode(endpoint)):08x}"
