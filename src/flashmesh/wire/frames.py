"""The frames of the link: one msgspec struct per kind, and how they become bytes.

A frame on the wire is a 4-byte big-endian length followed by a MessagePack array whose first item is the kind's number;
at most 64 KiB. A payload that does not fit inside its INVOKE, RESULT or ERROR follows as CHUNK frames of the same
execution (`size` tells how many bytes to expect in all), which a writer interleaves with other streams, control frames
first (wire/codec.py).

Three roles speak it with a session: a worker (runs calls), a template (makes workers) and a client (the dev server, a
script, a command: makes calls). Who may send what is said at each kind.
"""

from typing import Any, Final, Literal

import msgspec

MAX_FRAME_BYTES: Final = 64 * 1024
INLINE_PAYLOAD_BYTES: Final = 48 * 1024
"""A payload up to this size travels inside its frame; the rest of the 64 KiB is for the other fields."""
PROTOCOL_VERSION: Final = 1

Role = Literal["worker", "template", "client"]
JSON: Final = "application/json"
MSGPACK: Final = "application/x-msgpack"
BINARY: Final = "application/octet-stream"


class Frame(msgspec.Struct, array_like=True, frozen=True, omit_defaults=False):
    """Base of all kinds."""


class Hello(Frame, frozen=True, tag=1):
    """First frame of every connection, dialler to session, which closes it on a wrong version."""

    version: int
    role: Role
    endpoint: str = ""
    build: str = ""
    worker: str = ""
    pid: int = 0
    incarnation: int = 0
    """Template: the generation of what it serves; settings may change while the build stays the same."""
    free: int = 0
    """Slots that are not in use; READY adds what may be sent ahead."""
    running: list[str] = []
    """What the session gave this worker before and it still runs. Each as `id@attempt`, see `attempt_ref`."""
    held: list[str] = []
    """Of what it has the outcome, not acknowledged yet; written as in `running`. They follow READY."""
    begun: list[str] = []
    """The last execution that each of its slots has begun: of what it was given in one row, all before it ran too."""
    token: str = ""
    """Proves, where the kernel does not say who dials, that this end may serve this endpoint and build."""


class Ready(Frame, frozen=True, tag=2):
    """Worker: start-up is over, `free` calls may be sent. Template: the module is imported (or failed), see `info`.

    A template's info: {"state": "ready" | "import_failed" | "not_forkable", "build", "functions": [...],
    "config": {...}, "error": {file, line, reason, traceback}, "reason", "import_ms"}.
    """

    free: int = 0
    info: dict[str, Any] = {}


class Invoke(Frame, frozen=True, tag=3):
    """Run a function. Client to session, and session to worker. The payload is the bytes the client sent.

    `function` is a function id (`module.qualname`, `module.Class.method`). `accept` is the media type wanted for the
    result. `content_type` names the payload's form; MSGPACK payloads are Arguments (wire/arguments.py), JSON ones an
    HTTP body. `deadline_ms` is the run time left, 0 = no limit. `meta`: trace, chain (endpoints on the way), metadata,
    `mode` ("sync" | "async"), `stream` (True: items come as CHUNKs with `item`).
    """

    execution: str
    function: str
    attempt: int = 0
    build: str = ""
    content_type: str = JSON
    accept: str = JSON
    deadline_ms: int = 0
    meta: dict[str, Any] = {}
    size: int = 0
    payload: bytes = b""


class Started(Frame, frozen=True, tag=4):
    """Worker to session, session to client: the body begins now."""

    execution: str
    attempt: int = 0
    worker: str = ""
    cold: bool = False


class Chunk(Frame, frozen=True, tag=5):
    """A piece of an execution's payload, or with `item` of one yielded item. `last` ends the payload or the item."""

    execution: str
    attempt: int = 0
    item: bool = False
    last: bool = True
    data: bytes = b""


class Result(Frame, frozen=True, tag=6):
    """The call succeeded. `free` as in Credit. A generator's RESULT has no payload: its items went before."""

    execution: str
    attempt: int = 0
    free: int = 0
    content_type: str = JSON
    run_us: int = 0
    queue_us: int = 0
    cold_us: int = 0
    items: int = -1
    """How many items a generator yielded; -1 for a plain function."""
    size: int = 0
    payload: bytes = b""
    begins: str = ""
    """Worker to session: the execution whose body begins now in this one's slot; stands for its STARTED."""
    begins_attempt: int = 0


class Error(Frame, frozen=True, tag=7):
    """The call failed, or was not run. `code` is a FlashmeshError code; `ran` False = certainly never started.

    The payload is a MessagePack ErrorInfo (wire/failures.py).
    """

    execution: str
    code: str
    attempt: int = 0
    free: int = 0
    ran: bool = True
    run_us: int = 0
    size: int = 0
    payload: bytes = b""


class Ack(Frame, frozen=True, tag=8):
    """Session to worker: the outcomes of these executions are stored, or not wanted any more. Nothing need be kept."""

    executions: list[str]


class Credit(Frame, frozen=True, tag=9):
    """Worker: `free` calls may be sent now (execution empty): free slots, and what may wait behind the running ones.
    Reader of a stream: it can take `items` more of it."""

    execution: str = ""
    free: int = 0
    items: int = 0


class Discard(Frame, frozen=True, tag=10):
    """Session to worker: do not begin this attempt; it has gone elsewhere. Nothing happens when it has begun."""

    execution: str
    attempt: int = 0


class Cancel(Frame, frozen=True, tag=11):
    """Stop this execution. Client to session; session to the worker and its template.

    `attempt`: only what was sent under that number; 0: whichever there is.
    """

    execution: str
    reason: Literal["cancel", "timeout"] = "cancel"
    attempt: int = 0


class Log(Frame, frozen=True, tag=12):
    """Output of user code: template to session, session to clients that follow. `dropped` lines were lost before it."""

    endpoint: str
    worker: str
    stream: Literal["stdout", "stderr", "system"]
    text: str
    function: str = ""
    execution: str = ""
    at_ms: int = 0
    dropped: int = 0


class PeerCall(msgspec.Struct, array_like=True, frozen=True):
    """A call that reached a worker from a peer, not over its link; it has ended. `started_ms`: UTC."""

    execution: str
    function: str
    parent: str = ""
    """The execution whose body made the call; empty when it did not say."""
    trace: str = ""
    started_ms: int = 0
    queue_us: int = 0
    run_us: int = 0
    outcome: Literal["success", "error", "timeout", "cancelled"] = "success"
    code: str = ""


class Summary(Frame, frozen=True, tag=13):
    """Worker to session: calls of peers that it ran since the last one. `dropped`: how many more it forgot."""

    calls: list[PeerCall]
    dropped: int = 0


class Drain(Frame, frozen=True, tag=14):
    """Session to worker or template: take no more, finish, leave. Worker to session: it wants to leave; the session
    stops sending and closes the connection once nothing is in flight on it."""

    reason: str = ""
    limit_ms: int = 0


class Scale(Frame, frozen=True, tag=16):
    """Session to template: at least `workers` workers are wanted (never more than its max)."""

    workers: int


class Update(Frame, frozen=True, tag=17):
    """Session to template: serve this build from now on (new zygote, rolling). `spec` as in worker/spec.py."""

    spec: dict[str, Any]


class WorkerGone(Frame, frozen=True, tag=18):
    """Template to session: a worker's process ended. `status` as from waitpid, negative = signal.

    `begun`: the last execution that each of its slots had begun, by which the session knows of the unannounced ones.
    """

    worker: str
    pid: int
    status: int
    reason: str = ""
    begun: list[str] = []


class Query(Frame, frozen=True, tag=20):
    """Client to session: a question answered by exactly one Answer, or (follow) by Answers until the client closes.

    what: "status", "execution", "executions", "register", "follow_logs", "stream", "resolve", "purge".
    """

    id: int
    what: str
    arguments: dict[str, Any] = {}


class Answer(Frame, frozen=True, tag=21):
    """Session to client. `error` = {"code", "message", …} when the question could not be answered."""

    id: int
    body: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    more: bool = False


AnyFrame = (
    Hello
    | Ready
    | Invoke
    | Started
    | Chunk
    | Result
    | Error
    | Ack
    | Credit
    | Discard
    | Cancel
    | Log
    | Summary
    | Drain
    | Scale
    | Update
    | WorkerGone
    | Query
    | Answer
)

PayloadFrame = Invoke | Result | Error


def attempt_ref(execution: str, attempt: int) -> str:
    """One attempt of an execution, as HELLO names it."""
    return f"{execution}@{attempt}"


def read_attempt_ref(ref: str) -> tuple[str, int]:
    """The execution and the attempt; attempt 0 where none is told."""
    execution, _, attempt = ref.rpartition("@")
    return (execution, int(attempt)) if execution and attempt.isdecimal() else (ref, 0)
