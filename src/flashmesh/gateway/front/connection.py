"""One client connection: requests out of its bytes, answers back in the order of the requests.

A request that is answered at once costs no task, no timer and no entry in any table. Pipelined requests are served side
by side up to a bound and their answers kept in order; behind the bound, and while the client does not read, nothing
more is read. The first request that no hot route serves takes the whole connection with it (see handover.py). What a
request asks for, and whether it may, is found without looking at the connection (see arriving.py).

A client that closes its sending side counts as gone, as one that closes both does: the two look the same from here, and
a call that nobody waits for should not run on.
"""

import asyncio
import logging
from collections import deque
from typing import Final, cast

from flashmesh.gateway.front.answers import CLOSE, CONTINUE, KEEP_ALIVE, WITHOUT_LENGTH, BadAnswer, encode_head
from flashmesh.gateway.front.arriving import Arriving, Way, admit, flaw_of_part, is_too_large, without_upgrade
from flashmesh.gateway.front.exchange import HEADLESS, LAST, OLD, Exchange, Front, kind_of
from flashmesh.gateway.front.heads import KnownHead
from flashmesh.gateway.front.limits import BROKEN, Refusal, answer_to, head_too_large, not_http, too_slow
from flashmesh.gateway.front.parser import END, MoreFollows, RequestParser
from flashmesh.gateway.http import Answer, Handler, Request

log = logging.getLogger(__name__)

_LARGE_BODY: Final = 32 * 1024
"""From here on a body is written beside its head, not copied behind it."""
_ENOUGH: Final = 256 * 1024
"""So much is given to the transport within a turn, so that it can say when the client does not keep up."""
_STOPPED: Final = -1


class Connection(asyncio.Protocol):
    """See above. `first` is the oldest request without an answer."""

    __slots__ = (
        "_arriving",
        "_careful",
        "_closing",
        "_collecting",
        "_deaf",
        "_front",
        "_handing",
        "_later",
        "_lingers",
        "_out",
        "_owes_continue",
        "_paused",
        "_rest",
        "_since",
        "_stalled",
        "_transport",
        "_unsent",
        "first",
    )

    def __init__(self, front: Front) -> None:
        self._front = front
        self.first: Exchange | None = None
        self._later: deque[Exchange] | None = None
        self._out: list[bytes] = []
        self._arriving: Arriving | None = None
        """The request whose body is on its way."""
        self._rest: bytearray | None = None
        """Bytes not parsed yet: a part of a head, or, while reading is paused, whatever came."""
        self._deaf = False
        """What comes is thrown away: the last request came, or the connection is not ours any more."""
        self._closing = False
        """The last answer was given."""
        self._lingers = False
        """The client may still be sending what was refused."""
        self._paused = self._stalled = self._handing = False
        self._collecting = self._careful = self._owes_continue = False
        self._unsent = 0

    # --- what the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses
        refusal = self._front.joined(self)
        self._since = self._front.now  # not before: a server without connections does not look at the clock
        if refusal is not None:
            self._refuse(refusal)

    def connection_lost(self, error: Exception | None) -> None:
        self._deaf = self._closing = True
        self._front.left(self)
        self._abandon()

    def eof_received(self) -> None:
        if self._out:
            self._write()
        self._deaf = True
        self._abandon()

    def pause_writing(self) -> None:
        self._stalled = True
        self._unsent = 0
        self._since = self._front.now

    def resume_writing(self) -> None:
        self._stalled = False
        self._since = self._front.now
        if self._paused:
            self._front.loop.call_soon(self._resume)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._front.crowd.gathers:
            self._front.crowd.put_down(self, data)
            return
        if self.first is None and self._rest is None and self._arriving is None and not self._stalled:
            self._take_one(data)
        elif self._rest is None:
            self._take(data)
        elif self._paused:
            self._rest += data
        else:
            self._take_more_head(data)

    # --- reading ---

    def _take_more_head(self, data: bytes) -> None:
        rest = self._rest
        assert rest is not None
        known = max(0, len(rest) - 3)
        rest += data
        if rest.find(END, known) >= 0:
            self._rest = None
            self._take(bytes(rest))
        else:
            self._look_at_part(rest, known)

    def _look_at_part(self, head: bytearray, known: int) -> None:
        refusal = flaw_of_part(head, known, self._front.limits)
        if refusal is not None:
            self._refuse(refusal)

    def _take_one(self, data: bytes) -> None:
        """The commonest case in one go: a small, plain, hot request and nothing behind it. The rest goes to `_take`."""
        size, end = len(data), data.find(END) + 4
        front = self._front
        known = front.heads.get(data[:end])
        if known is not None and size - end == known.length and not self._careful:
            method, path, query, headers, _ = known
            handler = front.find(method, path)
            if handler is not None:
                verdict = front.check(method, path, query, headers)
                if type(verdict) is str:
                    self.first = exchange = Exchange(self, 0)
                    self._call(handler, Request(method, path, query, headers, data[end:], verdict), exchange)
                    return
        if end <= 4 or self._careful or (end > front.small_head and is_too_large(data, 0, end, front.limits)):
            self._take(data)
            return
        parser = front.parser
        try:
            parser.start(data, size - end)
        except (MoreFollows, Refusal) as problem:
            self._take_problem(problem, data)
            return
        path, query = parser.url, b""
        if b"?" in path:
            path, _, query = path.partition(b"?")
        if parser.complete and not parser.odd and (handler := front.find(parser.method, path)) is not None:
            verdict = front.check(parser.method, path, query, parser.headers)
            if isinstance(verdict, str):
                front.heads.remember(data[:end], KnownHead(parser.method, path, query, parser.headers, parser.length))
                self.first = exchange = Exchange(self, 0 if parser.method != b"HEAD" else HEADLESS)
                request = Request(parser.method, path, query, parser.headers, parser.body, verdict)
                self._call(handler, request, exchange)
                return
        self._collecting = True
        self._begin(parser, data, 0, size)
        self._collect()

    def _take_problem(self, problem: MoreFollows | Refusal, data: bytes) -> None:
        self._front.new_parser()
        if isinstance(problem, Refusal):
            self._refuse(problem)
        else:
            self._careful = True  # this client pipelines, or sends chunks
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Serve the requests in `data`; what is left waits in `_rest`."""
        position, size = 0, len(data)
        limit = self._front.limits.max_pipelined
        self._collecting = True
        while 0 <= position < size:
            if self._arriving is not None:
                position = self._take_body(self._arriving, data, position)
            elif self._stalled or (self._later and len(self._later) + 1 >= limit):
                self._hold(data, position)
                break
            else:
                position = self._take_head(data, position)
        self._collect()

    def _collect(self) -> None:
        """The answers given meanwhile leave together."""
        self._collecting = False
        if self._out:
            self.flush()

    def _take_head(self, data: bytes, start: int) -> int:
        """Take one request's head, nothing behind it; returns where to go on, or _STOPPED."""
        front = self._front
        if not 65 <= data[start] <= 90:
            return self._skip_empty_line(data, start)
        end = data.find(END, start) + 4
        if end < 4:
            self._rest = bytearray(data[start:])
            self._since = front.now
            self._look_at_part(self._rest, 0)
            return _STOPPED
        if is_too_large(data, start, end, front.limits):
            return self._refuse(head_too_large(front.limits))
        parser = front.parser
        try:
            parser.start(data[start:end], 0)
        except Refusal as refusal:
            front.new_parser()
            return self._refuse(refusal)
        return self._begin(parser, data, start, end)

    def _begin(self, parser: RequestParser, data: bytes, start: int, end: int) -> int:
        """Go on with a request whose head was parsed and that was read up to `end`."""
        front = self._front
        if not parser.complete or not parser.keep_alive or parser.upgrade:
            front.new_parser()  # this one is not between two requests, or will not take another
        match admit(parser, front):
            case Arriving() as arriving:
                if parser.complete:
                    return self._serve(parser, arriving.handler, arriving.request, end)
                return self._await_body(arriving, end)
            case Refusal() as refusal:
                return self._refuse(refusal)
            case Answer() as answer:
                return self._turn_away(parser, answer, end)
            case Way.ELSEWHERE:
                return self._hand_over(data, start)
            case Way.WITHOUT_UPGRADE:
                self._take(without_upgrade(data, start))
                return _STOPPED

    def _await_body(self, arriving: Arriving, end: int) -> int:
        self._arriving = arriving
        self._since = self._front.now
        if arriving.awaits_continue:
            self._say_continue()
        return end

    def _take_body(self, arriving: Arriving, data: bytes, start: int) -> int:
        try:
            end = arriving.parser.take(data, start)
        except Refusal as refusal:
            return self._refuse(refusal)
        if arriving.parser.complete:
            self._arriving = None
            return self._serve(arriving.parser, arriving.handler, arriving.whole(), end)
        return end

    def _serve(self, parser: RequestParser, handler: Handler, request: Request, end: int) -> int:
        self._deaf = not parser.keep_alive
        self._call(handler, request, self._queue(Exchange(self, kind_of(parser))))
        return _STOPPED if self._deaf else end

    def _turn_away(self, parser: RequestParser, answer: Answer, end: int) -> int:
        """Its sender may not do that: answered in its turn, and a body that is still to come thrown away."""
        self._front.refused += 1
        self._deaf = not parser.complete or not parser.keep_alive
        self._lingers = not parser.complete
        self._queue(Exchange(self, kind_of(parser))).respond(answer)
        return _STOPPED if self._deaf else end

    def _skip_empty_line(self, data: bytes, start: int) -> int:
        """RFC 9112, 2.2: a server should ignore an empty line before the request line."""
        if data.startswith(b"\r\n", start):
            return start + 2
        if data[start:] == b"\r":
            self._rest = bytearray(b"\r")
            self._since = self._front.now
            return _STOPPED
        return self._refuse(not_http("it does not begin with a method"))

    def _say_continue(self) -> None:
        if self.first is None:
            self._out.append(CONTINUE)
        else:
            self._owes_continue = True  # the answers before it come first

    # --- serving ---

    def _call(self, handler: Handler, request: Request, exchange: Exchange) -> None:
        self._front.requests += 1
        try:
            cancel = handler(request, exchange.respond)
        except Exception:
            log.exception("a handler failed")
            exchange.respond(BROKEN)
        else:
            if cancel is not None and exchange.connection is not None:
                exchange.cancel = cancel

    def _queue(self, exchange: Exchange) -> Exchange:
        if self.first is None:
            self.first = exchange
        elif self._later is None:
            self._later = deque((exchange,))
        else:
            self._later.append(exchange)
        return exchange

    def _refuse(self, refusal: Refusal) -> int:
        """Answer an error of ours, after the answers before it, and close; the rest of the request is thrown away."""
        self._front.refused += 1
        self._arriving = self._rest = None
        self._deaf = self._lingers = True
        self._queue(Exchange(self, LAST)).respond(answer_to(refusal))
        return _STOPPED

    def answered(self, exchange: Exchange, answer: Answer) -> None:
        """The oldest request has its answer: send it, and those behind it that were waiting for it."""
        front = self._front
        if exchange.kind == 0 and not self._later and not front.draining and not self._owes_continue:
            self.first = None
            self._since = front.now
            self._encode(answer, b"", False)
            if not self._collecting:
                if front.gathered is None:
                    self._write()
                else:
                    self._collecting = True
                    front.gathered.append(self)
        else:
            self._answered(exchange, answer)
        if self._paused:
            front.loop.call_soon(self._resume)

    def _answered(self, exchange: Exchange, answer: Answer) -> None:
        front, later = self._front, self._later
        while True:
            following = later.popleft() if later else None
            self.first = following
            kind = exchange.kind
            if front.draining and following is None and self._arriving is None and not self._handing:
                kind |= LAST
            line = CLOSE if kind & LAST else KEEP_ALIVE if kind & OLD else b""
            self._encode(answer, line, bool(kind & HEADLESS))
            if kind & LAST:
                self._deaf = self._closing = True
                self._since = front.now
                break
            if following is None or following.answer is None:
                break
            exchange, answer = following, following.answer
        if self.first is None:
            self._since = front.now
            if self._owes_continue:
                self._owes_continue = False
                self._out.append(CONTINUE)
        if not self._collecting:
            if self.first is None:
                self.flush()
            else:
                self._collecting = True  # more answers may come in this turn: they leave together
                front.loop.call_soon(self.flush)

    def _encode(self, answer: Answer, line: bytes, headless: bool) -> None:
        date = self._front.date
        if answer.status == 429:
            self._front.crowd.refused()
        try:
            head = encode_head(answer, date, line)
        except BadAnswer:
            log.exception("an answer was not sent")
            answer = BROKEN
            head = encode_head(answer, date, line)
        body = answer.body
        if headless or not body or answer.status in WITHOUT_LENGTH:
            self._out.append(head)
        elif len(body) < _LARGE_BODY:
            self._out.append(head + body)
        else:
            self._out += (head, body)
            if len(body) > _ENOUGH:
                self._write()

    # --- writing ---

    def _write(self) -> None:
        out = self._out
        if self._transport.is_closing():
            out.clear()
        elif self._stalled and self._transport.get_write_buffer_size() > self._front.limits.max_unsent:
            self._front.dropped += 1
            self._drop()
        elif len(out) == 1:
            self._transport.write(out.pop())
        elif out:
            self._out = []
            self._transport.writelines(out)

    def flush(self) -> None:
        """Send what was collected; close if that was the last."""
        self._collecting = False
        if self._out:
            self._write()
        if self._closing and not self._transport.is_closing():
            self._leave()

    def _leave(self) -> None:
        """Close in such a way that the client sees the last answer: closing with unread bytes would reset it."""
        self._abandon()
        if self._lingers:
            self._resume_reading()
            if self._transport.can_write_eof():  # TLS cannot
                self._transport.write_eof()
            # The client closes now, or the sweep does.
        else:
            self._transport.close()

    def _drop(self) -> None:
        self._deaf = self._closing = True
        self._transport.abort()
        self._abandon()

    def _abandon(self) -> None:
        """The client is gone, or was told that no more is answered."""
        first, later = self.first, self._later
        self.first = self._later = self._arriving = self._rest = None
        if first is not None:
            first.abandon()
        for exchange in later or ():
            exchange.abandon()

    # --- holding back ---

    def _hold(self, data: bytes, start: int) -> None:
        self._rest = bytearray(data[start:])
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Go on with what was held, as far as that is possible now."""
        if not self._paused or self._stalled or self._transport.is_closing():
            return
        if self._handing:
            if self.first is not None:
                return
        elif self._later and len(self._later) > self._front.limits.max_pipelined // 2:
            return  # a few at a time: what stays is copied
        rest, self._rest = self._rest, None
        self._resume_reading()
        if self._handing:
            self._give_away(bytes(rest or b""))
        elif rest and not self._deaf:
            self._take(bytes(rest))

    def _resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _hand_over(self, data: bytes, start: int) -> int:
        """Give the connection away from this request on, once everything before it is answered and sent."""
        self._handing = True
        if self.first is None and not self._stalled:
            if self._out:
                self._write()
            self._give_away(data[start:])
        else:
            self._hold(data, start)
        return _STOPPED

    def _give_away(self, data: bytes) -> None:
        self._deaf = True
        self._front.left(self)
        self._front.hand_over(self._transport, data)

    # --- time ---

    def sweep(self, now: float) -> None:
        """Look whether the client took too long with anything. `_since` may be one sweep too early, hence the slack."""
        limits = self._front.limits
        waited = now - self._since - limits.sweep_s
        if self._stalled or self._closing:
            self._sweep_unsent(now, waited)
        elif self._arriving is not None:
            if waited > limits.body_s:
                self._refuse(too_slow("body", limits.body_s))
        elif self._rest is not None:
            if waited > limits.head_s and not self._paused:
                self._refuse(too_slow("head", limits.head_s))
        elif self.first is None and waited > limits.idle_s:
            self._close()

    def _sweep_unsent(self, now: float, waited: float) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent != self._unsent:
            self._unsent, self._since = unsent, now
        elif waited > (self._front.limits.write_s if unsent else self._front.limits.linger_s) and (
            unsent or self._closing
        ):
            self._front.dropped += bool(unsent)
            self._drop()

    def wind_down(self) -> None:
        """The server stops: close if nothing is under way; else the answer says that it is the last."""
        if self.first is None and self._arriving is None and self._rest is None and not self._deaf:
            self._close()

    def _close(self) -> None:
        """Between two requests; what was written before is still sent, as far as the client reads it."""
        self._deaf = self._closing = True
        self._since = self._front.now
        self._transport.close()

    def abort(self) -> None:
        self._drop()
