"""What a session prints: live output of user code, one closing line per invocation, and its own notices.

On a terminal lines are for people (colours, `[function] line`); otherwise closing lines and notices are JSON objects,
one per line. Output of user code goes to stdout, everything of ours to stderr.
"""

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

_COLOURS = (36, 35, 34, 33, 32, 96, 95, 94)
_RED, _GREEN, _YELLOW, _DIM = 31, 32, 33, 2
_encode = msgspec.json.Encoder(enc_hook=str).encode
_OUTCOME_COLOURS = {"SUCCESS": _GREEN, "CANCELLED": _YELLOW}


class Output(Protocol):
    """What lines are written to: a text file, or what looks like one."""

    def isatty(self) -> bool: ...

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class LogPrinter:
    """Writes whole lines, from any thread.

    Args:
        out, err: where to; their being a terminal decides the form.
        pretty: force the form.
        quiet: closing lines and informational notices are left out (a script's session).
    """

    def __init__(
        self,
        *,
        out: Output | None = None,
        err: Output | None = None,
        pretty: bool | None = None,
        quiet: bool = False,
    ) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        terminal = self._err.isatty()
        self.pretty = terminal if pretty is None else pretty
        self.colours = terminal and "NO_COLOR" not in os.environ
        self._quiet = quiet
        self._lock = threading.Lock()
        self._colour_of: dict[str, int] = {}

    def output(self, *, function: str, endpoint: str, text: str, stream: str, dropped: int = 0) -> None:
        """Lines that user code printed. `stream` is stdout, stderr or system (ours, about that worker)."""
        label = function or endpoint
        target = self._out if stream == "stdout" else self._err
        shown = self._paint(f"[{short_name(label)}]", self._colour(label))
        lines = text.splitlines() or [""]
        if dropped:
            lines.insert(0, f"… {dropped} lines were dropped: more than could be shown")
        self._write(target, "".join(f"{shown} {line}\n" for line in lines))

    def closing(self, *ended: Mapping[str, Any]) -> None:
        """The lines that end invocations: execution, trace, function, route, queue_ms, cold_ms, run_ms, outcome."""
        if not self._quiet:
            self._write(self._err, "".join([self._closing(fields) for fields in ended]))

    def _closing(self, fields: Mapping[str, Any]) -> str:
        if not self.pretty:
            return _json("invocation", fields)
        outcome = str(fields.get("outcome", "")).upper()
        name = short_name(str(fields.get("function", "")))
        times = [
            f"{word} {fields[key]:.1f} ms"
            for word, key in (("run", "run_ms"), ("queue", "queue_ms"), ("cold", "cold_ms"))
            if fields.get(key)
        ]
        painted = self._paint(outcome, _OUTCOME_COLOURS.get(outcome, _RED))
        tail = self._paint(f"{'  '.join(times)}  {fields.get('execution', '')}", _DIM)
        return f"{self._stamp()} {painted} {name}  {tail}\n"

    def notice(self, text: str, *, level: str = "info", **fields: Any) -> None:
        """Something of ours: reloaded, problems, what to do. `level` is info, warning or error."""
        if self._quiet and level == "info":
            return
        if not self.pretty:
            self._write(self._err, _json("notice", {"level": level, "message": text, **fields}))
            return
        colour = {"warning": _YELLOW, "error": _RED}.get(level)
        self._write(self._err, f"{self._stamp()} {self._paint(text, colour) if colour else text}\n")

    def plain(self, text: str) -> None:
        """Text as it is, on stderr: the start-up table."""
        self._write(self._err, text)

    def _stamp(self) -> str:
        return self._paint(time.strftime("%H:%M:%S"), _DIM)

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text

    def _colour(self, label: str) -> int:
        return self._colour_of.setdefault(label, _COLOURS[len(self._colour_of) % len(_COLOURS)])

    def _write(self, target: Output, text: str) -> None:
        with self._lock:
            try:
                target.write(text)
                target.flush()
            except (OSError, ValueError):
                pass  # the terminal or pipe is gone; the session ends by its own signals


def _json(event: str, fields: Mapping[str, Any]) -> str:
    return _encode({"event": event, "at": _stamp_of(int(time.time())), **fields}).decode() + "\n"


@functools.lru_cache(maxsize=1)
def _stamp_of(second: int) -> str:
    """A moment of the clock as closing lines tell it; most come in the same second as the one before."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


def short_name(function: str) -> str:
    """`longruns.stage1.process` -> `process`, `counter.Counter.inc` -> `Counter.inc`."""
    *rest, last = function.split(".")
    return f"{rest[-1]}.{last}" if rest and rest[-1][:1].isupper() else last


Closing = Callable[[Mapping[str, Any]], None]
