"""Frames to bytes and back, with payloads of any size.

A frame (wire/frames.py) is one length-prefixed MessagePack array of at most 64 KiB. What is larger travels in pieces:

- the payload of an INVOKE, RESULT or ERROR, or a yielded item: CHUNK frames of that execution (`size` in the head says
  how many bytes follow; an item ends with `last`);
- any other frame that outgrew 64 KiB (the schemas of many functions, an answer with an execution's result): its own
  encoding in CHUNKs whose execution is empty and whose `attempt` numbers the frame.

Between processes of one machine what is 1 MiB or larger goes as one SEALED frame instead, with the descriptor of a file
in memory (wire/memfd.py), once the other end has said that it takes descriptors; or as one LENT frame, in a file that
both know and use again (wire/lending.py), where it takes those too.

`FrameWriter` decides the order: whole frames first, pieces round-robin between executions, and never a frame of an
execution before an earlier one of the same execution. `FrameReader` gives back whole frames only.
"""

import enum
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from flashmesh.functions.errors import LinkProtocolError, PayloadTooLarge, SettingsError
from flashmesh.wire import frames, memfd
from flashmesh.wire.frames import MSGPACK, AnyFrame, Chunk, Error, Frame, Invoke, Result
from flashmesh.wire.lending import Borrowed, Borrower, Lender, Lent
from flashmesh.wire.memfd import Descriptor, Splices
from flashmesh.wire.parts import Buffer, Parts

DEFAULT_PAYLOAD_LIMIT: Final = 64 * 1024 * 1024
SLACK_BYTES: Final = 1024 * 1024
"""What a reader accepts beyond the limit writers keep, so that an envelope around a full-sized body still passes."""
OPEN_LIMIT: Final = 65536
"""Most payloads a reader assembles at one time."""
TAKE_BYTES: Final = 256 * 1024
"""Bytes per write: enough to fill a socket's buffer, small enough that a control frame waits less than 0.1 ms."""
_MAX: Final = frames.MAX_FRAME_BYTES
_HEAD_LIMIT: Final = 8 * 1024
_COPY_BELOW: Final = 16 * 1024
"""Pieces below this are copied out of the receive buffer, so that a small one does not keep a large buffer alive."""


class _Piece(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """A CHUNK as the reader sees it: the data still lies in the receive buffer."""

    execution: str
    attempt: int = 0
    item: bool = False
    last: bool = True
    data: memoryview = memoryview(b"")


class _Sealed(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """All pieces of a payload, item or oversize frame at once: `size` bytes in the descriptor that came with it."""

    execution: str
    attempt: int = 0
    item: bool = False
    size: int = 0


class _Lent(msgspec.Struct, array_like=True, frozen=True, tag=27):
    """The same in a file that is used again. `new`: its descriptor came with this frame; else the reader knows it."""

    execution: str
    attempt: int = 0
    item: bool = False
    size: int = 0
    number: int = 0
    new: bool = False


class Ping(Frame, frozen=True, tag=22):
    """Are you there? Over TCP, where a machine may vanish without a word."""


class Pong(Frame, frozen=True, tag=23):
    """Yes."""


class Asks(Frame, frozen=True, tag=25):
    """A large payload waits: does the other end take descriptors?"""


class Takes(Frame, frozen=True, tag=26):
    """This end takes descriptors, or not. Said when asked, or before."""

    descriptors: bool = False
    lent: bool = False
    """And gives files back, so that they can be lent. An end that does not know of that says nothing here."""


class Returned(Frame, frozen=True, tag=28):
    """Nothing at this end looks at these files any more: they may be written again."""

    numbers: list[int]


class GivenUp(Frame, frozen=True, tag=29):
    """These files will not be used again."""

    numbers: list[int]


Aside = Ping | Pong | Asks | Takes | Returned | GivenUp
"""What two ends of a link say to each other about the link itself; their owners never see it."""
_ASIDES: Final = (Ping, Pong, Asks, Takes, Returned, GivenUp)
_PAYLOAD_KINDS: Final = (Invoke, Result, Error)
_WHOLE = (
    frames.Hello | frames.Ready | Invoke | frames.Started | Result | Error | frames.Ack | frames.Credit | frames.Discard
    | frames.Cancel | frames.Log | frames.Summary | frames.Drain | frames.Scale | frames.Update | frames.WorkerGone
    | frames.Query | frames.Answer
)  # fmt: skip

_length_at = struct.Struct(">I").unpack_from
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_WHOLE | _Piece | _Sealed | _Lent | Aside).decode


def payload_limit(env: Mapping[str, str] = os.environ) -> int:
    """Largest payload in bytes: FLASH_MAX_BODY_BYTES, default 64 MiB. Raises SettingsError for anything but a size."""
    text = env.get("FLASH_MAX_BODY_BYTES")
    if not text:
        return DEFAULT_PAYLOAD_LIMIT
    if not text.strip().isdigit() or int(text) < 1:
        raise SettingsError(f"FLASH_MAX_BODY_BYTES is {text!r}. Set it to a number of bytes, such as 67108864.")
    return int(text)


def encode(frame: AnyFrame | Aside) -> bytes:
    """One frame with its length prefix. Raises LinkProtocolError over 64 KiB: larger ones need a FrameWriter."""
    body = _encode(frame)
    if len(body) > _MAX:
        raise LinkProtocolError(
            f"A {type(frame).__name__} of {len(body)} bytes does not fit one frame. Use FrameWriter."
        )
    return len(body).to_bytes(4, "big") + body


def _bad_length(length: int) -> LinkProtocolError:
    return LinkProtocolError(f"A frame of {length} bytes was announced; the limit is {_MAX}.")


class _Assembly:
    """A payload, item or oversize frame of which some pieces have come."""

    __slots__ = ("head", "pieces", "received", "size")

    def __init__(self, head: Invoke | Result | Error | None, size: int) -> None:
        self.head = head
        self.size = size  # -1: not announced, the last piece ends it
        self.pieces: list[Buffer] = []
        self.received = 0


class FrameReader:
    """Bytes in, whole frames out. One per connection; after a LinkProtocolError it is not usable any more.

    Args:
        max_payload: largest assembled payload in bytes; default: `payload_limit()` and some slack.
        on_aside: told what concerns the link itself, when its turn comes.
        mapped: a MessagePack payload that came as a descriptor is given out as a read-only memoryview, or as a
            Borrowed, not copied.
        splices: keeps descriptors for whoever sends their payloads on. A MessagePack INVOKE is then given out as a
            Borrowed as well.
    Attributes:
        borrower: the files that the other end lends.
    """

    __slots__ = ("_descriptors", "_mapped", "_max", "_need", "_on_aside", "_open", "_partial", "_splices", "borrower")

    def __init__(
        self,
        *,
        max_payload: int | None = None,
        on_aside: Callable[[Aside], None] | None = None,
        mapped: bool = False,
        splices: Splices | None = None,
    ) -> None:
        self._max = payload_limit() + SLACK_BYTES if max_payload is None else max_payload
        self._partial = bytearray()
        self._need = 4
        self._open: dict[tuple[str, int, bool], _Assembly] = {}
        self._descriptors: deque[Descriptor] = deque()
        self._on_aside = on_aside
        self._mapped = mapped
        self._splices = splices
        self.borrower = Borrower(self._max)

    def feed_with(self, data: Buffer, descriptors: Sequence[Descriptor]) -> list[AnyFrame]:
        """The same as `feed` for what one `recvmsg` brought; the descriptors are the reader's from now on."""
        self._descriptors += descriptors
        found = self.feed(data)
        if len(self._descriptors) > bool(self._partial):
            self.close()
            raise LinkProtocolError("A descriptor came with no payload that it is for.")
        return found

    def close(self) -> None:
        """Close descriptors that no frame has claimed, and forget the other end's files. Harmless when repeated."""
        while self._descriptors:
            self._descriptors.popleft().close()
        self.borrower.close()

    def feed(self, data: Buffer) -> list[AnyFrame]:
        """Frames completed by `data`, in order. Raises LinkProtocolError for garbage and for what is over a limit."""
        found: list[AnyFrame] = []
        view = memoryview(data)
        start, end = 0, len(view)
        if self._partial:
            start = self._finish_partial(view, found)
            if self._partial:
                return found
        while end - start >= 4:
            length = _length_at(view, start)[0]
            if not 0 < length <= _MAX:
                raise _bad_length(length)
            stop = start + 4 + length
            if stop > end:
                self._need = stop - start
                break
            self._accept(view[start + 4 : stop], found)
            start = stop
        else:
            self._need = 4
        if start < end:
            self._partial += view[start:]
        return found

    def _finish_partial(self, view: memoryview, found: list[AnyFrame]) -> int:
        """Complete the frame that began in an earlier feed. Returns where in `view` the next one starts."""
        used = 0
        while True:
            taken = min(self._need - len(self._partial), len(view) - used)
            self._partial += view[used : used + taken]
            used += taken
            if len(self._partial) < self._need:
                return used
            if self._need > 4:
                body = memoryview(bytes(self._partial))[4:]
                self._partial.clear()
                self._need = 4
                self._accept(body, found)
                return used
            length = _length_at(self._partial)[0]
            if not 0 < length <= _MAX:
                raise _bad_length(length)
            self._need = 4 + length

    def _accept(self, body: memoryview, found: list[AnyFrame]) -> None:
        try:
            frame = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise LinkProtocolError(
                f"Not a frame: {error}. Both ends must run the same version of flashmesh."
            ) from error
        if isinstance(frame, _PAYLOAD_KINDS):
            if frame.size > len(frame.payload):
                self._open_payload(frame)
            else:
                found.append(frame)
        elif isinstance(frame, _Piece):
            self._accept_piece(frame, found)
        elif isinstance(frame, _Sealed):
            self._accept_sealed(frame, found)
        elif isinstance(frame, _Lent):
            self._accept_lent(frame, found)
        elif isinstance(frame, _ASIDES):
            if isinstance(frame, GivenUp):
                self.borrower.forget(frame.numbers)
            elif self._on_aside is not None:
                self._on_aside(frame)
        else:
            found.append(frame)

    def _open_payload(self, head: Invoke | Result | Error) -> None:
        if head.size > self._max:
            raise LinkProtocolError(f"A payload of {head.size} bytes was announced; the limit is {self._max}.")
        assembly = self._start((head.execution, head.attempt, False), head, head.size)
        if head.payload:
            assembly.pieces.append(head.payload)
            assembly.received = len(head.payload)

    def _start(self, key: tuple[str, int, bool], head: Invoke | Result | Error | None, size: int) -> _Assembly:
        if key in self._open:
            raise LinkProtocolError(f"Execution {key[0]} starts a second payload inside its first.")
        if len(self._open) >= OPEN_LIMIT:
            raise LinkProtocolError(f"More than {OPEN_LIMIT} payloads are being sent at once.")
        assembly = self._open[key] = _Assembly(head, size)
        return assembly

    def _accept_piece(self, piece: _Piece, found: list[AnyFrame]) -> None:
        key = (piece.execution, piece.attempt, piece.item)
        assembly = self._open.get(key)
        if assembly is None:
            if piece.item and piece.last:
                found.append(Chunk(piece.execution, piece.attempt, True, True, bytes(piece.data)))
                return
            if piece.execution and not piece.item:
                raise LinkProtocolError(f"A piece of execution {piece.execution} came before its head.")
            assembly = self._start(key, None, -1)
        size = piece.data.nbytes
        assembly.received += size
        if assembly.received > (self._max if assembly.size < 0 else assembly.size):
            raise LinkProtocolError(
                f"Execution {piece.execution} sent more than it announced or than {self._max} bytes."
            )
        assembly.pieces.append(piece.data if size >= _COPY_BELOW else bytes(piece.data))
        if piece.last:
            del self._open[key]
            self._complete(piece, assembly, b"".join(assembly.pieces), found)

    def _accept_sealed(self, piece: _Sealed, found: list[AnyFrame]) -> None:
        if not self._descriptors:
            raise LinkProtocolError(f"Execution {piece.execution}: a payload's descriptor did not come with it.")
        sealed = self._descriptors.popleft()
        kept = False
        try:
            assembly = self._whole_of(piece)
            if piece.size > self._max:
                raise LinkProtocolError(f"A payload of {piece.size} bytes was announced; the limit is {self._max}.")
            memfd.check(sealed, piece.size)
            if self._mapped and getattr(assembly.head, "content_type", "") == MSGPACK:
                whole: Buffer = memfd.view(sealed, piece.size)
            else:
                whole = memfd.read(sealed, piece.size)
            self._complete(piece, assembly, whole, found)
            if self._splices is not None and assembly.head is not None and isinstance(whole, bytes):
                self._splices.keep(whole, sealed)
                kept = True
        finally:
            if not kept:
                sealed.close()

    def _accept_lent(self, piece: _Lent, found: list[AnyFrame]) -> None:
        if piece.new:
            if not self._descriptors:
                raise LinkProtocolError(f"Execution {piece.execution}: a payload's descriptor did not come with it.")
            self.borrower.meet(piece.number, self._descriptors.popleft())
        borrowed = self.borrower.borrow(piece.number, piece.size)
        assembly = self._whole_of(piece)
        head = assembly.head
        if getattr(head, "content_type", "") == MSGPACK and (
            self._mapped or (self._splices is not None and isinstance(head, Invoke))
        ):
            self._complete(piece, assembly, borrowed, found)
            return
        whole = bytes(borrowed)
        self._complete(piece, assembly, whole, found)
        if self._splices is not None and head is not None:
            self._splices.keep(whole, borrowed)

    def _whole_of(self, piece: _Sealed | _Lent) -> _Assembly:
        """What a payload that comes at once belongs to."""
        assembly = self._open.pop((piece.execution, piece.attempt, piece.item), None)
        if assembly is None:
            if piece.execution and not piece.item:
                raise LinkProtocolError(f"A payload of execution {piece.execution} came before its head.")
            return _Assembly(None, -1)
        if assembly.received:
            raise LinkProtocolError(f"Execution {piece.execution} sent a payload in pieces and as a whole.")
        return assembly

    def _complete(
        self, piece: _Piece | _Sealed | _Lent, assembly: _Assembly, whole: Buffer | Borrowed, found: list[AnyFrame]
    ) -> None:
        if assembly.head is not None:
            if len(whole) != assembly.size:
                raise LinkProtocolError(f"Execution {piece.execution}: {len(whole)} of {assembly.size} bytes came.")
            # A mapped payload is no bytes, as the frame says; only who asked for that gets one.
            found.append(msgspec.structs.replace(assembly.head, payload=whole))
        elif piece.item:
            found.append(Chunk(piece.execution, piece.attempt, True, True, whole))  # type: ignore[arg-type]
        elif len(whole) <= _MAX:
            raise LinkProtocolError("A frame that fits 64 KiB came in pieces.")  # also keeps pieces from nesting
        else:
            assert not isinstance(whole, Borrowed)  # it has no head
            self._accept(memoryview(whole), found)


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
        if isinstance(frame, _PAYLOAD_KINDS):
            if len(frame.payload) > frames.INLINE_PAYLOAD_BYTES:
                self._put_payload(frame)
                return
        elif isinstance(frame, Chunk) and len(frame.data) > frames.INLINE_PAYLOAD_BYTES:
            self._check(len(frame.data))
            self._stream(frame).waiting.append(self._split(frame, frame.data))
            return
        body = _encode(frame)
        if len(body) > _MAX:
            self._check(len(body))
            self._stream(frame).waiting.append(self._oversize(body))
        elif self._streams and (stream := self._streams.get(_key(frame))) is not None:
            stream.waiting.append(iter([(len(body).to_bytes(4, "big"), body)]))
        else:
            self._put_ready(body)

    def put_aside(self, frame: Aside) -> None:
        """Say something about the link itself; it passes whatever waits in pieces."""
        self._put_ready(_encode(frame))

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
        body = _encode(msgspec.structs.replace(frame, payload=b"", size=len(frame.payload)))
        fits = len(body) <= _MAX
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
        size = self._take_ready(out, max(limit - _MAX, 1) if self._streams else limit)
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
            body = _encode(_Lent(shape.execution, shape.attempt, shape.item, lent.size, lent.number, new))
            sealed = lent.descriptor
        elif sealed is not None:
            body = _encode(_Sealed(shape.execution, shape.attempt, shape.item, len(data)))
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
    more = _encode(Chunk(shape.execution, shape.attempt, shape.item, False))[:-2]
    final = _encode(Chunk(shape.execution, shape.attempt, shape.item, shape.last))[:-2]
    if len(more) > _HEAD_LIMIT:
        raise LinkProtocolError(f"The execution id is {len(shape.execution)} characters long; use a short one.")
    view = data.view() if isinstance(data, Borrowed) else memoryview(data).cast("B")
    step = _MAX - len(more) - 3
    step = min(step, 0xFFFF)
    for start in range(0, len(view), step):
        piece = view[start : start + step]
        head = final if start + step >= len(view) else more
        length = len(head) + 3 + len(piece)
        yield length.to_bytes(4, "big") + head + b"\xc5" + len(piece).to_bytes(2, "big"), piece
