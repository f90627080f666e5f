"""Frames to bytes, in the order that keeps small ones prompt; see codec.py."""

import enum
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from flashmesh.functions.errors import LinkProtocolError, PayloadTooLarge
from flashmesh.wire import frames, memfd
from flashmesh.wire.codec import (
    MAX_BYTES,
    PAYLOAD_KINDS,
    Aside,
    Asks,
    GivenUp,
    LentPiece,
    Returned,
    Sealed,
    Takes,
    pack,
    payload_limit,
)
from flashmesh.wire.frames import AnyFrame, Chunk, Error, Invoke, Result
from flashmesh.wire.lending import Borrowed, Borrower, Lender, Lent
from flashmesh.wire.memfd import Descriptor, Splices
from flashmesh.wire.parts import Buffer, Parts

TAKE_BYTES: Final = 256 * 1024
"""Bytes per write: enough to fill a socket's buffer, small enough that a control frame waits less than 0.1 ms."""
_HEAD_LIMIT: Final = 8 * 1024


class _Large:
    """A payload, item or oversize frame that may leave as a descriptor. `shape` has its ids and whether it is last."""

    __slots__ = ("data", "shape")

    def __init__(self, shape: Chunk, data: Buffer | Borrowed | Lent) -> None:
        self.shape = shape
        self.data = data


class _Stream:
    """What one execution has still to send, in order. `after`: how many whole frames must have left before."""

    __slots__ = ("after", "waiting")

    def __init__(self, after: int) -> None:
        self.after = after
        self.waiting: deque[Iterator[tuple[Buffer, ...]] | _Large] = deque()

    @property
    def large(self) -> _Large | None:
        """What is next, if it may leave as a descriptor."""
        first = self.waiting[0] if self.waiting else None
        return first if isinstance(first, _Large) else None

    def next(self) -> tuple[Buffer, ...] | None:
        """Buffers of the next frame, or None when nothing is left, or nothing before a `large` one."""
        while self.waiting:
            first = self.waiting[0]
            if isinstance(first, _Large):
                return None
            buffers = next(first, None)
            if buffers is not None:
                return buffers
            self.waiting.popleft()
        return None


class Attached:
    """Bytes that must leave together with a descriptor: one `sendmsg`, the descriptor with the first of them."""

    __slots__ = ("data", "sealed", "size")

    def __init__(self, data: bytes, sealed: Descriptor, size: int) -> None:
        self.data = data
        self.sealed = sealed
        self.size = size


class Passing(enum.Enum):
    """Whether large payloads leave as descriptors."""

    NO = enum.auto()
    UNASKED = enum.auto()
    """They could; the first large one asks."""
    ASKED = enum.auto()
    YES = enum.auto()


class FrameWriter:
    """Frames in, bytes out, in the order that keeps control frames prompt.

    Not bounded by itself: what callers put is theirs to bound (credits, queues). `bool(writer)`: something waits.

    Args:
        max_payload: largest payload `put` accepts, in bytes; default: `payload_limit()`.
        splices: has the descriptors of payloads that came as such.
    Attributes:
        passing: set it to UNASKED where descriptors can travel, then to what the other end answered.
        patient: large payloads wait for that answer; otherwise they leave in pieces until it has come.
        lender: the files that large payloads leave in, where the other end gives them back.
        borrower: the reader's, whose returns are told with what leaves next.
    """

    __slots__ = (
        "_due", "_max", "_number", "_put", "_ready", "_ready_bytes", "_sent", "_splices", "_streams", "borrower",
        "lender", "passing", "patient",
    )  # fmt: skip

    def __init__(self, *, max_payload: int | None = None, splices: Splices | None = None, patient: bool = True) -> None:
        self._max = payload_limit() if max_payload is None else max_payload
        self._ready: deque[bytes] = deque()
        self._ready_bytes = 0
        self._put = 0
        self._sent = 0
        self._streams: dict[str, _Stream] = {}
        self._number = 0
        self._due: Attached | None = None
        self._splices = splices
        self.passing = Passing.NO
        self.patient = patient
        self.lender: Lender | None = None
        self.borrower: Borrower | None = None

    def __bool__(self) -> bool:
        return bool(self._ready or self._streams or self._due is not None)

    @property
    def asking(self) -> bool:
        """Whether a large payload could leave as a descriptor if the other end's answer were here."""
        return self.passing is Passing.ASKED and any(
            isinstance(part, _Large) for stream in self._streams.values() for part in stream.waiting
        )

    def put(self, frame: AnyFrame) -> None:
        """Add a frame, its payload whole inside. Raises PayloadTooLarge and then adds nothing."""
        if isinstance(frame, PAYLOAD_KINDS):
            if len(frame.payload) > frames.INLINE_PAYLOAD_BYTES:
                self._put_payload(frame)
                return
        elif isinstance(frame, Chunk) and len(frame.data) > frames.INLINE_PAYLOAD_BYTES:
            self._check(len(frame.data))
            self._stream(frame).waiting.append(self._split(frame, frame.data))
            return
        body = pack(frame)
        if len(body) > MAX_BYTES:
            self._check(len(body))
            self._stream(frame).waiting.append(self._oversize(body))
        elif self._streams and (stream := self._streams.get(_key(frame))) is not None:
            stream.waiting.append(iter([(len(body).to_bytes(4, "big"), body)]))
        else:
            self._put_ready(body)

    def put_aside(self, frame: Aside) -> None:
        """Say something about the link itself; it passes whatever waits in pieces."""
        self._put_ready(pack(frame))

    def close(self) -> None:
        """Drop what waits, and its descriptor."""
        if self._due is not None:
            self._due.sealed.close()
            self._due = None
        self._ready.clear()
        self._ready_bytes = 0
        self._streams.clear()
        if self.lender is not None:
            self.lender.close()

    def answered(self, takes: Takes) -> None:
        """The other end takes descriptors, or not, and files that are lent, or not."""
        self.passing = Passing.YES if takes.descriptors else Passing.NO
        if takes.descriptors and takes.lent and self.lender is None:
            self.lender = Lender()

    def put_files(self) -> None:
        """Say what has become of files: which of the other end's are free, and which of ours it can forget."""
        if self.borrower is not None and self.borrower.returns:
            self.put_aside(Returned(self.borrower.take_returns()))
        if self.lender is not None and (given_up := self.lender.take_given_up()):
            self.put_aside(GivenUp(given_up))

    def ask(self) -> None:
        """Ask whether the other end takes descriptors, unless that is known or cannot be."""
        if self.passing is Passing.UNASKED:
            self.passing = Passing.ASKED
            self.put_aside(Asks())

    def _put_ready(self, body: bytes) -> None:
        self._ready.append(len(body).to_bytes(4, "big"))
        self._ready.append(body)
        self._put += 1
        self._ready_bytes += len(body) + 4

    def _check(self, size: int) -> None:
        if size > self._max:
            raise PayloadTooLarge(
                f"The value is {size} bytes; the limit is {self._max}. Send less, or raise FLASH_MAX_BODY_BYTES."
            )

    def _put_payload(self, frame: Invoke | Result | Error) -> None:
        self._check(len(frame.payload))
        body = pack(msgspec.structs.replace(frame, payload=b"", size=len(frame.payload)))
        fits = len(body) <= MAX_BYTES
        waiting = self._stream(frame).waiting
        waiting.append(iter([(len(body).to_bytes(4, "big"), body)]) if fits else self._oversize(body))
        waiting.append(self._payload(Chunk(frame.execution, frame.attempt), frame.payload))

    def _payload(self, shape: Chunk, payload: Buffer | Borrowed | Parts) -> Iterator[tuple[Buffer, ...]] | _Large:
        if not isinstance(payload, Parts):
            return self._split(shape, payload)
        # It refers to what its owner may change as soon as we return: it goes to its place now.
        lent = None
        if self.lender is not None and self.passing is Passing.YES:
            try:
                lent = self.lender.lend(payload)
            except OSError:
                lent = None
        return self._split(shape, bytes(payload)) if lent is None else _Large(shape, lent)

    def _oversize(self, body: bytes) -> Iterator[tuple[Buffer, ...]] | _Large:
        self._number = self._number % 0x7FFFFFFF + 1
        return self._split(Chunk("", self._number), body)

    def _split(self, shape: Chunk, data: Buffer | Borrowed) -> Iterator[tuple[Buffer, ...]] | _Large:
        if len(data) < memfd.LARGE_BYTES or self.passing is Passing.NO:
            return _pieces(shape, data)
        self.ask()
        return _Large(shape, data)

    def _stream(self, frame: AnyFrame) -> _Stream:
        key = _key(frame)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(self._put)
        return stream

    def take(self, limit: int = TAKE_BYTES) -> bytes | Attached:
        """About `limit` bytes to send next (at most one frame more), or what must leave with a descriptor.

        Empty when nothing waits, or only large payloads for the answer whether the other end takes descriptors.
        """
        if (due := self._take_due()) is not None:
            return due
        if (self.borrower is not None and self.borrower.returns) or self.lender is not None:
            self.put_files()
        if not self._streams and self._ready_bytes <= limit:
            data = b"".join(self._ready)
            self._sent = self._put
            self._ready.clear()
            self._ready_bytes = 0
            return data
        data = b"".join(self.take_buffers(limit))
        return data or self._take_due() or data

    def _take_due(self) -> Attached | None:
        due, self._due = self._due, None
        return due

    def take_buffers(self, limit: int = TAKE_BYTES) -> list[Buffer]:
        """The same without joining: pieces are views of the payloads that were put. Ends before a descriptor."""
        out: list[Buffer] = []
        # Pieces get a share even when whole frames never stop coming.
        size = self._take_ready(out, max(limit - MAX_BYTES, 1) if self._streams else limit)
        skipped = 0
        while size < limit and skipped < len(self._streams):
            key, stream = next(iter(self._streams.items()))
            del self._streams[key]
            if stream.after > self._sent or (stream.large is not None and not self._may_leave(stream)):
                self._streams[key] = stream
                skipped += 1
            elif (large := stream.large) is not None:
                self._streams[key] = stream
                if self._attach(stream, large):
                    break  # it leaves alone, in the next write
            elif buffers := stream.next():
                self._streams[key] = stream
                out += buffers
                size += sum(map(len, buffers))
                skipped = 0
            elif stream.waiting:
                self._streams[key] = stream  # a large one has come to its head
        return out

    def _may_leave(self, stream: _Stream) -> bool:
        return self.passing is not Passing.ASKED or not self.patient

    def _attach(self, stream: _Stream, large: _Large) -> bool:
        """Make the next write one with a descriptor. False: it leaves in pieces, because none can be made."""
        shape, data = large.shape, large.data
        lent: Lent | None = None
        sealed: Descriptor | None = None
        if self.passing is Passing.YES:
            try:
                lent, sealed = self._placed(data)
            except OSError:  # no memory or no descriptor left: it goes as it would elsewhere
                pass
        stream.waiting.popleft()
        if lent is not None:
            new = lent.descriptor is not None
            body = pack(LentPiece(shape.execution, shape.attempt, shape.item, lent.size, lent.number, new))
            sealed = lent.descriptor
        elif sealed is not None:
            body = pack(Sealed(shape.execution, shape.attempt, shape.item, len(data)))
        else:
            assert not isinstance(data, Lent)  # made once the other end had said that it takes them
            stream.waiting.appendleft(_pieces(shape, data))
            return False
        if sealed is None:
            stream.waiting.appendleft(iter([(len(body).to_bytes(4, "big"), body)]))
            return False
        self._due = Attached(len(body).to_bytes(4, "big") + body, sealed, len(data))
        return True

    def _placed(self, data: Buffer | Borrowed | Lent) -> tuple[Lent | None, Descriptor | None]:
        """The file it leaves in: one that is lent, or one of its own. Raises OSError."""
        if isinstance(data, Lent):
            return data, None
        source: object = data
        if self._splices is not None and not isinstance(data, Borrowed):
            source = self._splices.take(data)
        if isinstance(source, Descriptor):
            return None, source
        lent: Lent | None = None
        if self.lender is not None and isinstance(source, Borrowed):
            lent = self.lender.pass_on(source)
        if lent is None:
            whole = data.view() if isinstance(data, Borrowed) else data
            if self.lender is not None:
                lent = self.lender.lend(whole)
            if lent is None:
                return None, memfd.seal(whole)
        return lent, None

    def _take_ready(self, out: list[Buffer], limit: int) -> int:
        size = 0
        while self._ready and size < limit:
            prefix, body = self._ready.popleft(), self._ready.popleft()
            out += (prefix, body)
            size += 4 + len(body)
            self._sent += 1
        self._ready_bytes -= size
        return size


def _key(frame: AnyFrame) -> str:
    """What a frame must stay in order with: its execution, its question, or else its kind."""
    execution = getattr(frame, "execution", "")
    if execution:
        return str(execution)
    number = getattr(frame, "id", None)
    return type(frame).__name__ if number is None else f"{type(frame).__name__} {number}"


def _pieces(shape: Chunk, data: Buffer | Borrowed) -> Iterator[tuple[Buffer, ...]]:
    """CHUNK frames that carry `data` with the ids of `shape`, the data itself uncopied."""
    # An empty bin ends the array as c4 00; cutting those two bytes leaves the head that any data can follow.
    more = pack(Chunk(shape.execution, shape.attempt, shape.item, False))[:-2]
    final = pack(Chunk(shape.execution, shape.attempt, shape.item, shape.last))[:-2]
    if len(more) > _HEAD_LIMIT:
        raise LinkProtocolError(f"The execution id is {len(shape.execution)} characters long; use a short one.")
    view = data.view() if isinstance(data, Borrowed) else memoryview(data).cast("B")
    step = MAX_BYTES - len(more) - 3
    step = min(step, 0xFFFF)
    for start in range(0, len(view), step):
        piece = view[start : start + step]
        head = final if start + step >= len(view) else more
        length = len(head) + 3 + len(piece)
        yield length.to_bytes(4, "big") + head + b"\xc5" + len(piece).to_bytes(2, "big"), piece
