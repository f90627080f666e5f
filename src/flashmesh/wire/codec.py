"""Frames to bytes and back, with payloads of any size.

A frame (wire/frames.py) is one length-prefixed MessagePack array of at most 64 KiB. What is larger travels in pieces:

- the payload of an INVOKE, RESULT or ERROR, or a yielded item: CHUNK frames of that execution (`size` in the head says
  how many bytes follow; an item ends with `last`);
- any other frame that outgrew 64 KiB (the schemas of many functions, an answer with an execution's result): its own
  encoding in CHUNKs whose execution is empty and whose `attempt` numbers the frame.

Between processes of one machine what is 1 MiB or larger goes as one SEALED frame instead, with the descriptor of a file
in memory (wire/memfd.py), once the other end has said that it takes descriptors; or as one LENT frame, in a file that
both know and use again (wire/lending.py), where it takes those too.

`FrameWriter` (writing.py) decides the order: whole frames first, pieces round-robin between executions, and never a
frame of an execution before an earlier one of the same execution. `FrameReader` (reading.py) gives back whole frames
only. Here is what both know.
"""

import os
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from flashmesh.functions.errors import LinkProtocolError, SettingsError
from flashmesh.wire import frames
from flashmesh.wire.frames import AnyFrame, Error, Frame, Invoke, Result

DEFAULT_PAYLOAD_LIMIT: Final = 64 * 1024 * 1024
MAX_BYTES: Final = frames.MAX_FRAME_BYTES


class Piece(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """A CHUNK as the reader sees it: the data still lies in the receive buffer."""

    execution: str
    attempt: int = 0
    item: bool = False
    last: bool = True
    data: memoryview = memoryview(b"")


class Sealed(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """All pieces of a payload, item or oversize frame at once: `size` bytes in the descriptor that came with it."""

    execution: str
    attempt: int = 0
    item: bool = False
    size: int = 0


class LentPiece(msgspec.Struct, array_like=True, frozen=True, tag=27):
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
ASIDES: Final = (Ping, Pong, Asks, Takes, Returned, GivenUp)
PAYLOAD_KINDS: Final = (Invoke, Result, Error)
_WHOLE = (
    frames.Hello | frames.Ready | Invoke | frames.Started | Result | Error | frames.Ack | frames.Credit | frames.Discard
    | frames.Cancel | frames.Log | frames.Summary | frames.Drain | frames.Scale | frames.Update | frames.WorkerGone
    | frames.Query | frames.Answer
)  # fmt: skip

length_at = struct.Struct(">I").unpack_from
pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(_WHOLE | Piece | Sealed | LentPiece | Aside).decode


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
    body = pack(frame)
    if len(body) > MAX_BYTES:
        raise LinkProtocolError(
            f"A {type(frame).__name__} of {len(body)} bytes does not fit one frame. Use FrameWriter."
        )
    return len(body).to_bytes(4, "big") + body


def bad_length(length: int) -> LinkProtocolError:
    return LinkProtocolError(f"A frame of {length} bytes was announced; the limit is {MAX_BYTES}.")
