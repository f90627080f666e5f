"""A command that is spoken to over stdin and stdout: one line with the request in, one line of JSON out, per call.

Nothing but order ties an answer to its call. So whatever is printed beside the answers ends the process: its next line
might be taken for the answer of somebody else's call. What it prints before the first call is a greeting, and harmless.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from flashmesh.functions.errors import FlashmeshError, PayloadTooLarge, ValidationError
from flashmesh.gateway.functions.external.answers import Output, of_line
from flashmesh.gateway.functions.external.far_end import FarEnd, Flight
from flashmesh.gateway.functions.external.pipes import Reader, Writer
from flashmesh.gateway.functions.external.requests import request_body
from flashmesh.wire.frames import JSON


class StdioCarrier:
    """Carries calls to one process, one at a time.

    Args:
        astray: told what was printed that answers nothing. The process is to be replaced unless it was a greeting.
        hung_up: told that it has closed its stdout.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        max_answer_bytes: int,
        astray: Callable[[bytes, bool], None],
        hung_up: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._limit = max_answer_bytes
        self._astray = astray
        self._hung_up = hung_up
        self._usable = True
        self._stdin = Writer(loop)
        self._stdout = Reader(loop, self._take)
        self._buffer = bytearray()
        self._searched = 0
        self._current: tuple[FarEnd, Flight] | None = None
        self._greeting = True

    def hand_over(self) -> tuple[int, int]:
        """The process's ends of its stdin and stdout. Whoever takes them closes them."""
        return self._stdin.hand_over(), self._stdout.hand_over()

    @property
    def execution(self) -> str:
        """Whose call it is at, for what it prints on stderr."""
        return "" if self._current is None else self._current[1].invoke.execution

    def begin(self, far_end: FarEnd, flight: Flight) -> bool:
        self._stdout.drain()
        if not self._usable:
            return False
        try:
            media, body = request_body(flight.invoke)
            if media != JSON:
                raise ValidationError(f"a function on stdin takes JSON, not {media}", field="input")
        except ValidationError as error:
            self._loop.call_soon(partial(far_end.fail, flight, error, ran=False))
            return True
        self._greeting = False
        self._current = (far_end, flight)
        # Outside of its strings, where they cannot stand raw, JSON's line ends are only blanks.
        self._stdin.write(body.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n")
        return True

    def stop(self, far_end: FarEnd, flight: Flight) -> None:
        if self._current is not None and self._current[1] is flight:
            self._current = None

    def last_words(self) -> None:
        """Its process has ended: an answer may still be in the pipe."""
        self._stdout.drain()

    def close(self) -> None:
        self._stdin.close()
        self._stdout.close()

    def _take(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        end = buffer.find(b"\n", self._searched)
        self._searched = len(buffer)
        if end < 0 and data:
            if len(buffer) > self._limit:
                buffer.clear()
                self._searched = 0
                self._stray(b"")
                self._answer(PayloadTooLarge(f"the function's line is longer than {self._limit} bytes"))
            return
        line, rest = bytes(buffer[:end] if end >= 0 else buffer).strip(), bytes(buffer[end + 1 :] if end >= 0 else b"")
        buffer.clear()
        self._searched = 0
        if rest.strip():
            self._stray(rest)  # before its answer frees the slot for another call
        if line:
            self._line(line)
        if not data:
            self._usable = False
            self._hung_up()

    def _stray(self, data: bytes) -> None:
        if not self._greeting:
            self._usable = False
        self._astray(data, self._greeting)

    def _line(self, line: bytes) -> None:
        if self._current is None:
            self._stray(line)
            return
        meaning = of_line(line)
        if isinstance(meaning, FlashmeshError) and not line.startswith(b"{"):
            self._stray(b"")
        self._answer(meaning)

    def _answer(self, meaning: "Output | FlashmeshError") -> None:
        if self._current is None:
            return
        (far_end, flight), self._current = self._current, None
        if isinstance(meaning, Output):
            far_end.succeed(flight, meaning.content_type, meaning.payload)
        else:
            far_end.fail(flight, meaning)
