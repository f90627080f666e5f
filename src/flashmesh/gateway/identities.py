"""Execution ids for calls over HTTP: the same UUIDs as `kit.ids` makes, from randomness fetched in bulk."""

import os
import time
from typing import Final

from flashmesh.kit.ids import ExecutionId

BATCH: Final = 256
"""Ids per visit to the kernel, which costs as much as ten of them."""
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class Identities:
    """Makes ids. Not thread-safe."""

    __slots__ = ("_ready",)

    def __init__(self) -> None:
        self._ready: list[ExecutionId] = []

    def forget(self) -> None:
        """Begin with fresh randomness: a forked child must not repeat its parent's ids."""
        self._ready.clear()

    def new(self) -> ExecutionId:
        """A UUID of version 7: the moment of its batch, its place there, 62 random bits. Each sorts behind the last."""
        if not self._ready:
            self._ready += _batch()
        return self._ready.pop()


def _batch() -> list[ExecutionId]:
    text = os.urandom(8 * BATCH).hex()
    moment = f"{time.time_ns() // 1_000_000:012x}"
    head = f"{moment[:8]}-{moment[8:]}-7"
    return [
        ExecutionId(
            f"{head}{place:03x}-{_VARIANT[text[16 * place]]}{text[16 * place + 1 : 16 * place + 4]}-"
            f"{text[16 * place + 4 : 16 * place + 16]}"
        )
        for place in reversed(range(BATCH))
    ]


_shared = Identities()
new_execution_id = _shared.new
"""For the event loop's thread."""
os.register_at_fork(after_in_child=_shared.forget)
