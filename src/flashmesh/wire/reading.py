"""Bytes to whole frames; see codec.py."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from flashmesh.functions.errors import LinkProtocolError
from flashmesh.wire import memfd
from flashmesh.wire.codec import (
    ASIDES,
    MAX_BYTES,
    PAYLOAD_KINDS,
    Aside,
    GivenUp,
    LentPiece,
    Piece,
    Sealed,
    bad_length,
    length_at,
    payload_limit,
    unpack,
)
from flashmesh.wire.frames import MSGPACK, AnyFrame, Chunk, Error, Invoke, Result
from flashmesh.wire.lending import Borrowed, Borrower
from flashmesh.wire.memfd import Descriptor, Splices
from flashmesh.wire.parts import Buffer

SLACK_BYTES: Final = 1024 * 1024
"""What a reader accepts beyond the limit writers keep, so that an envelope around a full-sized body still passes."""
OPEN_LIMIT: Final = 65536
"""Most payloads a reader assembles at one time."""
_COPY_BELOW: Final = 16 * 1024
"""Pieces below this are copied out of the receive buffer, so that a small one does not keep a large buffer alive."""


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
            length = length_at(view, start)[0]
            if not 0 < length <= MAX_BYTES:
                raise bad_length(length)
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
            length = length_at(self._partial)[0]
            if not 0 < length <= MAX_BYTES:
                raise bad_length(length)
            self._need = 4 + length

    def _accept(self, body: memoryview, found: list[AnyFrame]) -> None:
        try:
            frame = unpack(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise LinkProtocolError(
                f"Not a frame: {error}. Both ends must run the same version of flashmesh."
            ) from error
        if isinstance(frame, PAYLOAD_KINDS):
            if frame.size > len(frame.payload):
                self._open_payload(frame)
            else:
                found.append(frame)
        elif isinstance(frame, Piece):
            self._accept_piece(frame, found)
        elif isinstance(frame, Sealed):
            self._accept_sealed(frame, found)
        elif isinstance(frame, LentPiece):
            self._accept_lent(frame, found)
        elif isinstance(frame, ASIDES):
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

    def _accept_piece(self, piece: Piece, found: list[AnyFrame]) -> None:
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

    def _accept_sealed(self, piece: Sealed, found: list[AnyFrame]) -> None:
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

    def _accept_lent(self, piece: LentPiece, found: list[AnyFrame]) -> None:
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

    def _whole_of(self, piece: Sealed | LentPiece) -> _Assembly:
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
        self, piece: Piece | Sealed | LentPiece, assembly: _Assembly, whole: Buffer | Borrowed, found: list[AnyFrame]
    ) -> None:
        if assembly.head is not None:
            if len(whole) != assembly.size:
                raise LinkProtocolError(f"Execution {piece.execution}: {len(whole)} of {assembly.size} bytes came.")
            # A mapped payload is no bytes, as the frame says; only who asked for that gets one.
            found.append(msgspec.structs.replace(assembly.head, payload=whole))
        elif piece.item:
            found.append(Chunk(piece.execution, piece.attempt, True, True, whole))  # type: ignore[arg-type]
        elif len(whole) <= MAX_BYTES:
            raise LinkProtocolError("A frame that fits 64 KiB came in pieces.")  # also keeps pieces from nesting
        else:
            assert not isinstance(whole, Borrowed)  # it has no head
            self._accept(memoryview(whole), found)
