"""One request on its way to an endpoint and its answer on the way back, byte for byte; or a websocket for its life.

The endpoint is reached by a connection of its own to its Unix socket, so the backlog of that socket is the only queue
and every request goes to a worker that is free for it. Whoever does not read is not read for: neither side's bytes
pile up here. When one side ends, so does the other; after an answer that ended as it should, the client's connection
goes back to where it came from, and its next request may mean something else.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol, cast

from flashmesh.gateway.front.limits import FrontLimits, body_too_large, not_http, too_slow
from flashmesh.gateway.http import JSON_TYPE, Answer
from flashmesh.gateway.lb.far_side import FarSide
from flashmesh.gateway.lb.framing import Body, Chunked, Malformed, UntilClose
from flashmesh.gateway.lb.heads import END, AnswerHead, BadHead, RequestHead, allows_origin, answer_head, to_client
from flashmesh.kit.ids import EndpointName
from flashmesh.wire.plain_json import dump

log = logging.getLogger(__name__)

ANSWER_S: Final = 300.0
"""How long an endpoint may take from the whole request to the first byte of its answer: queue, cold start and body."""
_LONGEST_HEAD: Final = 64 * 1024


class Owner(Protocol):
    """What a passage tells."""

    limits: FrontLimits
    loop: asyncio.AbstractEventLoop

    @property
    def draining(self) -> bool:
        """Nothing is kept open any more."""
        ...

    def dismiss(self, transport: asyncio.Transport, answer: Answer | None) -> None:
        """Send a last answer, or none, and close so that the client sees what was sent."""
        ...

    def take_back(self, transport: asyncio.Transport, data: bytes, *, last: bool = False) -> None:
        """The connection goes on, with what was read of its next request; or ends, once everything is sent."""
        ...

    def ended(self, passage: "Passage", status: int) -> None:
        """The passage has no part in its connections any more. `status` of the answer; 0: it got none."""
        ...


class Passage(asyncio.Protocol):
    """The protocol of the client's side, and who is told of the endpoint's.

    Args:
        head: as the client sent it; `sent`: as the endpoint gets it.
        more: lines for the answer's head, unless the endpoint says the same of itself.
        still: whether the client may still be answered; asked once a second.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        endpoint: EndpointName,
        path: str,
        head: RequestHead,
        sent: bytes,
        more: bytes = b"",
        still: Callable[[], bool] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.is_tunnel = False
        """Both sides agreed on another protocol."""
        self._owner = owner
        self._head = head
        self._more = more
        self._still = still
        self._request: Body = head.body()
        self._upgrades = head.is_websocket
        self._keep = head.keeps_alive
        self._client: asyncio.Transport
        self._far = FarSide(self, path, owner.loop)
        self._far.send(sent)
        self._held = bytearray()
        """Of the client, behind this request."""
        self._begun = bytearray()
        """Of the answer, while its head is not whole."""
        self._answer: Body | None = None
        self._status = 0
        self._paused = self._stalled = self._deaf = self._finished = self._over = False
        self._waited = -owner.limits.sweep_s
        """Seconds that whoever is waited for has taken so far, without the last one, which had begun before."""
        self._unsent = 0
        self._unframed = False

    # --- beginning ---

    def begin(self, transport: asyncio.Transport, data: bytes) -> None:
        """Be the protocol of a client's connection; `data` is what came behind the head."""
        self._client = transport
        transport.set_protocol(self)
        if transport.is_closing():
            self._end()
            return
        if data:
            self.data_received(data)
        if not self._is_over():
            self._far.connect()

    def _is_over(self) -> bool:
        return self._over

    # --- the client ---

    def data_received(self, data: bytes) -> None:
        if self._over or self._deaf:
            return
        if self.is_tunnel:
            self._send(data)
            return
        request = self._request
        if request.complete or self._upgrades:
            self._hold(data)
            return
        try:
            taken = request.take(data)
        except Malformed as problem:
            self._refuse_request(not_http(problem).status, not_http(problem).body)
            return
        if request.size > self._owner.limits.max_body:
            refusal = body_too_large(self._owner.limits)
            self._refuse_request(refusal.status, refusal.body)
            return
        if self._is_whole():
            self._waited = -self._owner.limits.sweep_s
        if taken == len(data):
            self._send(data)
        else:
            self._send(data[:taken])
            self._hold(data[taken:])

    def _is_whole(self) -> bool:
        """The whole request has come."""
        return self._request.complete

    def _hold(self, data: bytes) -> None:
        self._held += data
        self._pause()

    def eof_received(self) -> bool | None:
        return None  # a client that sends no more counts as gone, as everywhere at this port

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def pause_writing(self) -> None:
        self._stalled = True
        self._waited, self._unsent = -self._owner.limits.sweep_s, 0
        self._far.look_away()

    def resume_writing(self) -> None:
        self._stalled = False
        self._waited = -self._owner.limits.sweep_s
        if self._finished:
            self._done()
        else:
            self._far.read_on()

    def _pause(self) -> None:
        if not self._paused and not self._client.is_closing():
            self._paused = True
            self._client.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self._client.is_closing():
            self._paused = False
            self._client.resume_reading()

    # --- the endpoint ---

    def _send(self, data: bytes) -> None:
        self._far.send(data)
        if self._far.is_full:
            self._pause()

    def endpoint_has_room(self) -> None:
        """See NearSide."""
        if not self._held:
            self._resume()

    def endpoint_deaf(self) -> None:
        """See NearSide."""
        if self.is_tunnel:
            self._close_client()
        self._deaf = True  # its answer may be there all the same

    def endpoint_not_reached(self, error: OSError) -> None:
        """See NearSide."""
        if isinstance(error, BlockingIOError):
            self._refuse(_busy(self.endpoint))
        else:
            self._refuse(_unavailable(f"{self.endpoint} cannot be reached ({error.strerror}). Try again."))

    def endpoint_said(self, data: bytes) -> None:
        """See NearSide."""
        if self.is_tunnel:
            self._client.write(data)
        elif self._answer is None:
            self._begun += data
            self._take_heads()
        else:
            self._pass_on(data)

    def _take_heads(self) -> None:
        """The answer's head, and what may come before it: `100 Continue` and its kind."""
        while self._answer is None and not self.is_tunnel and not self._over:
            end = self._begun.find(END) + len(END)
            if end < len(END):
                if len(self._begun) > _LONGEST_HEAD:
                    self._refuse(_bad(f"{self.endpoint} answered with a head that does not end."))
                return
            data, rest = bytes(self._begun[:end]), bytes(self._begun[end:])
            self._begun = bytearray(rest)
            try:
                head = answer_head(data)
                if head.is_final:
                    self._begin_answer(head)
                elif head.status == 101:
                    self._begin_tunnel(head)
                elif not self._head.old:
                    self._client.write(data)
            except BadHead as problem:
                self._refuse(_bad(f"{self.endpoint} did not answer in HTTP: {problem}."))

    def _begin_answer(self, head: AnswerHead) -> None:
        unframed = self._head.old
        answer = head.body(method=self._head.method, decode=unframed)
        self._unframed = unframed and isinstance(answer, Chunked)
        lasts = self._unframed or isinstance(answer, UntilClose)
        if lasts or self._owner.draining or not self._request.complete:
            self._keep = False
        connection = b"close" if not self._keep else b"keep-alive" if self._head.old else b""
        more = [self._more] if self._more and not allows_origin(head) else []
        self._status, self._answer = head.status, answer
        self._waited = -self._owner.limits.sweep_s
        sent = to_client(head, connection=connection, unframed=self._unframed, more=more)
        begun, self._begun = bytes(self._begun), bytearray()
        if begun and not answer.complete and not self._unframed:
            self._client.write(sent + begun[: self._taken(begun)])
        else:
            self._client.write(sent)
            if begun and not answer.complete:
                self._pass_on(begun)
                return
        if answer.complete:
            self._done()

    def _taken(self, data: bytes) -> int:
        """How much of `data` is the answer's. An endpoint that sends something else ends the exchange."""
        assert self._answer is not None
        try:
            return self._answer.take(data)
        except Malformed as problem:
            log.warning("%s sent a broken body: %s", self.endpoint, problem)
            self._abort()
            return 0

    def _pass_on(self, data: bytes) -> None:
        answer = self._answer
        assert answer is not None
        taken = self._taken(data)
        if self._over:
            return
        if self._unframed:
            content = cast(Chunked, answer).content
            data = bytes(content)
            content.clear()
        elif taken < len(data):
            data = data[:taken]
        if data:
            self._client.write(data)
        if answer.complete:
            self._done()

    def _begin_tunnel(self, head: AnswerHead) -> None:
        if not self._upgrades:
            raise BadHead("it changes the protocol unasked")
        self.is_tunnel, self._status = True, head.status
        self._client.write(to_client(head, connection=b"upgrade") + bytes(self._begun))
        self._begun.clear()
        held, self._held = bytes(self._held), bytearray()
        if held:
            self._send(held)
        if not self._far.is_full:
            self._resume()

    def endpoint_gone(self) -> None:
        """See NearSide."""
        if self.is_tunnel:
            self._close_client()
        elif isinstance(self._answer, UntilClose):
            self._answer.complete = True
            self._done()
        elif self._answer is None:
            text = f"{self.endpoint} ended the connection without an answer. Whether it ran the request is not known."
            self._refuse(_bad(text))
        else:
            self._abort()  # that the answer is cut short is all that can be said of it now

    # --- the end ---

    def _done(self) -> None:
        """The answer is complete. Whoever has the connection next must not find it unread: so wait for that here."""
        if self._stalled:
            self._far.close()
            self._finished = True
            return
        complete, held = self._request.complete, bytes(self._held)
        client, paused = self._client, self._paused
        self._end()
        if client.is_closing():
            return
        if not complete:
            self._owner.dismiss(client, None)  # it may still be sending
            return
        if paused:
            client.resume_reading()
        self._owner.take_back(client, held, last=not self._keep)

    def refuse(self, answer: Answer) -> None:
        """The endpoint cannot answer, for this reason. Nothing happens once it has begun to."""
        if self._answer is None and not self.is_tunnel and not self._over:
            self._refuse(answer)

    def _refuse_request(self, status: int, body: bytes) -> None:
        """What the client sends is not good. A half answer is all it gets when there is one already."""
        if self._answer is None:
            self._refuse(Answer(status, [JSON_TYPE], body))
        else:
            self._abort()

    def _refuse(self, answer: Answer) -> None:
        self._status = answer.status
        client = self._client
        self._end()
        self._owner.dismiss(client, answer)

    def _close_client(self) -> None:
        """What was written is still sent."""
        client = self._client
        self._end()
        if not client.is_closing():
            self._owner.take_back(client, b"", last=True)

    def _abort(self) -> None:
        client = self._client
        self._end()
        client.abort()

    def abort(self) -> None:
        """End it now."""
        if not self._over:
            self._abort()

    def _end(self) -> None:
        """Let go of the endpoint; the client is somebody else's from here."""
        if self._over:
            return
        self._over = True
        self._far.close()
        self._owner.ended(self, self._status)

    # --- time ---

    def sweep(self) -> None:
        """`sweep_s` have passed since the last time: whoever is waited for may have taken too long."""
        limits = self._owner.limits
        seconds = limits.sweep_s
        if self._still is not None and not self._still():
            self._abort()
            return
        if self._stalled:
            unsent = self._client.get_write_buffer_size()
            self._waited = 0.0 if unsent != self._unsent else self._waited + seconds
            self._unsent = unsent
            if self._waited > limits.write_s:
                self._abort()
        elif self.is_tunnel:
            return
        elif not self._request.complete:
            self._waited += 0.0 if self._paused else seconds
            if self._waited > limits.body_s:
                refusal = too_slow("body", limits.body_s)
                self._refuse_request(refusal.status, refusal.body)
        elif self._answer is None:
            self._waited += seconds
            if self._waited > ANSWER_S:
                text = f"{self.endpoint} did not answer within {ANSWER_S:g} s. `flash logs` may tell why."
                self._refuse(failure(504, "TIMEOUT", text))


def failure(status: int, word: str, message: str, *more: tuple[bytes, bytes]) -> Answer:
    """An answer of ours instead of the endpoint's."""
    return Answer(status, [JSON_TYPE, *more], dump({"error": word, "message": message}))


def _busy(endpoint: EndpointName) -> Answer:
    text = f"Too many connections wait for {endpoint}. Try again in a second, or raise `queue_size` or its workers."
    return failure(429, "QUEUE_FULL", text, (b"retry-after", b"1"), (b"x-queue-reject-reason", b"depth"))


def _unavailable(text: str) -> Answer:
    return failure(503, "ENDPOINT_UNAVAILABLE", text, (b"retry-after", b"1"))


def _bad(text: str) -> Answer:
    return failure(502, "BAD_GATEWAY", text)
