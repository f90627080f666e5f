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
        """A UUID of version 7 whose moment is that of its batch."""
        if not self._ready:
            self._ready += _batch()
        return self._ready.pop()


def _batch() -> list[ExecutionId]:
    text = os.urandom(10 * BATCH).hex()
    moment = f"{time.time_ns() // 1_000_000:012x}"
    head = f"{moment[:8]}-{moment[8:]}-7"
    return [
        ExecutionId(
            f"{head}{text[at + 1 : at + 4]}-{_VARIANT[text[at + 4]]}{text[at + 5 : at + 8]}-{text[at + 8 : at + 20]}"
        )
        for at in range(0, 20 * BATCH, 20)
    ]


_shared = Identities()
new_execution_id = _shared.new
"""For the event loop's thread."""
os.register_at_fork(after_in_child=_shared.forget)
