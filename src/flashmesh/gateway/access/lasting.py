"""Answers that last, event streams above all: they end when whoever asked may no longer ask.

A request is judged when it comes. One that is answered for hours is judged again as long as parts of its answer leave,
by one timer for all of them, which runs only while there are any. uvicorn tells an application whose answer was ended
here that its client has gone.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from flashmesh.gateway.access.tokens import LOOK_S

Send = Callable[[Any], Awaitable[None]]

_EVENTS: Final = b"text/event-stream"
_LAST_EVENT: Final = (
    b'event: error\ndata: {"error":"UNAUTHORIZED","message":"The token counts no longer, so the stream ends here."}\n\n'
)


class LastingAnswers:
    """Those of one application. Everything on its event loop."""

    def __init__(self, *, look_s: float = LOOK_S) -> None:
        self._look_s = look_s
        self._open: set[LastingAnswer] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def answer(self, send: Send, still: Callable[[], bool]) -> "LastingAnswer":
        """What the application sends its answer by. `still`: whether the request would be let in now."""
        return LastingAnswer(self, send, still)

    def add(self, answer: "LastingAnswer") -> None:
        self._open.add(answer)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def discard(self, answer: "LastingAnswer") -> None:
        self._open.discard(answer)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for answer in [one for one in self._open if not one.still()]:
            self._open.discard(answer)
            task = loop.create_task(answer.end(), name="ending an answer")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        if self._open:
            self._timer = loop.call_later(self._look_s, self._look)


class LastingAnswer:
    """One answer on its way; an ASGI `send`."""

    def __init__(self, all: LastingAnswers, send: Send, still: Callable[[], bool]) -> None:
        self.still = still
        self._all = all
        self._send = send
        self._is_events = False
        self._lasts = False
        self._ended = False

    async def __call__(self, message: Any) -> None:
        """What comes after `end` goes nowhere."""
        if self._ended:
            return
        if message["type"] == "http.response.start":
            self._is_events = any(name == b"content-type" and _EVENTS in value for name, value in message["headers"])
        elif not message.get("more_body", False):
            self.close()
        elif not self._lasts:
            self._lasts = True
            self._all.add(self)
        await self._send(message)

    async def end(self) -> None:
        """Send the last part in place of the application. A client that is gone hears nothing."""
        self._ended = True
        await self._send({"type": "http.response.body", "body": _LAST_EVENT if self._is_events else b""})

    def close(self) -> None:
        """The application has said all it has to say."""
        if self._lasts:
            self._all.discard(self)
