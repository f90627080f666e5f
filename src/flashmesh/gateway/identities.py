"""Execution ids for calls over HTTP: the same random UUIDs as `kit.ids` makes, from randomness fetched in bulk."""

import os
from typing import Final

from flashmesh.kit.ids import ExecutionId

BATCH: Final = 256
"""Ids per visit to the kernel, which costs as much as ten of them."""
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class Identities:
    """Makes ids. Not thread-safe."""

    __slots__ = ("_hex", "_next")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin with fresh randomness: a forked child must not repeat its parent's ids."""
        self._hex = ""
        self._next = 0

    def new(self) -> ExecutionId:
        """A random UUID (version 4)."""
        at = self._next
        text = self._hex[at : at + 32]
        if len(text) < 32:
            text = self._refill()
        else:
            self._next = at + 32
        variant = _VARIANT[text[16]]
        return ExecutionId(f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}")

    def _refill(self) -> str:
        self._hex = os.urandom(16 * BATCH).hex()
        self._next = 32
        return self._hex[:32]


_shared = Identities()
new_execution_id = _shared.new
"""For the event loop's thread."""
os.register_at_fork(after_in_child=_shared.forget)
