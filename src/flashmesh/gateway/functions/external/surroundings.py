"""What every external function of a server shares."""

import asyncio
import dataclasses
import os
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from flashmesh.gateway.functions.external.addresses import PlainHttp
from flashmesh.gateway.functions.external.client import MAX_ANSWER_BYTES
from flashmesh.gateway.functions.external.processes import Processes
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.wire.frames import Log

READY_S: Final = 10.0
"""How long a command may take until it listens on its port."""
_INHERITED: Final = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Ports and settings.

    Attributes:
        callback_url: where a function that answered 202 completes, up to `/executions`; None: not told.
        directory: where commands run; None: where the server was started.
        scratch: holds the files of FILE functions; None: the system's temporary directory.
        on_log: told each line that a command prints.
    """

    dispatcher: Dispatcher
    loop: asyncio.AbstractEventLoop
    processes: Processes
    plain_http: PlainHttp = dataclasses.field(default_factory=PlainHttp)
    callback_url: str | None = None
    directory: Path | None = None
    scratch: Path | None = None
    on_log: Callable[[Log], None] = lambda line: None
    wall: Callable[[], float] = time.time
    max_answer_bytes: int = MAX_ANSWER_BYTES
    ready_s: float = READY_S
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
    environ: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)

    def command_env(self, own: Mapping[str, str], **given: str) -> dict[str, str]:
        """A command's environment: what any program needs of ours (never tokens or keys), its own, what we tell it."""
        kept = {name: value for name, value in self.environ.items() if name in _INHERITED or name.startswith("LC_")}
        told = {"CALLBACK_URL": self.callback_url} if self.callback_url else {}
        return {**kept, **own, **told, **given}
