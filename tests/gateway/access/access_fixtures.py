"""A machine's tokens and a gate before them, with a clock that is set by hand."""

from pathlib import Path
from typing import Any

from flashmesh.gateway.access.gate import AccessGate
from flashmesh.gateway.access.pages import PageRules
from flashmesh.gateway.access.place import Place
from flashmesh.gateway.access.tokens import LOOK_S, Tokens
from flashmesh.gateway.http import Answer
from flashmesh.wire.tokens import Scope

NOON = 1_800_000_000.0


class Clock:
    """Seconds since the epoch."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Door:
    """A gate that is asked in text."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", place: Place | None = None, **rules: Any) -> None:
        self.folder = folder
        self.clock = Clock()
        self.tokens = Tokens(folder, clock=self.clock)
        self.gate = AccessGate(PageRules.make(host=host, **rules), self.tokens, place)
        self.gate.check(b"GET", b"/docs", b"", {b"host": b"127.0.0.1:7470"})
        self.home = "127.0.0.1:7470" if host == "127.0.0.1" else "10.0.0.5:7470"

    def issue(self, scope: Scope, name: str = "ci", **more: Any) -> str:
        return self.tokens.keys.issue(name, scope, **more)[0]

    def ask(self, line: str, *, token: str | None = None, **headers: str) -> Answer | str:
        """`GET /path?query`; a `host` header and a bearer token are added.

        A gate that never saw a request and one that has served many must say the same.
        """
        method, _, target = line.partition(" ")
        path, _, query = target.partition("?")
        shown = {"host": self.home, **headers}
        if token is not None:
            shown["authorization"] = f"Bearer {token}"
        raw = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in shown.items() if value}
        new = AccessGate(self.gate.rules, self.tokens, self.gate.place)
        found = new.check(method.encode(), path.encode(), query.encode(), raw)
        for _ in range(2):
            assert self.gate.check(method.encode(), path.encode(), query.encode(), raw) == found
        return found

    def notice(self) -> None:
        """Let as much time pass as a running server may take to see a change."""
        self.clock.now += LOOK_S


def refused(found: Answer | str) -> tuple[int, str]:
    """Status and body of what must be a refusal."""
    assert isinstance(found, Answer), f"let in as {found!r}"
    return found.status, found.body.decode()
