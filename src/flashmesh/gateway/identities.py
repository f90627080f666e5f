"""Execution ids for calls over HTTP: the same random UUIDs as `kit.ids` makes, from randomness fetched in bulk."""

import os
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
        """A random UUID (version 4)."""
        if not self._ready:
            self._ready += _batch()
        return self._ready.pop()


def _batch() -> list[ExecutionId]:
    text = os.urandom(16 * BATCH).hex()
    return [
        ExecutionId(
            f"{text[at : at + 8]}-{text[at + 8 : at + 12]}-4{text[at + 13 : at + 16]}-"
            f"{_VARIANT[text[at + 16]]}{text[at + 17 : at + 20]}-{text[at + 20 : at + 32]}"
        )
        for at in range(0, 32 * BATCH, 32)
    ]


_shared = Identities()
new_execution_id = _shared.new
"""For the event loop's thread."""
os.register_at_fork(after_in_child=_shared.forget)
