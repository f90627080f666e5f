"""What every call takes along of the call that made it: chain, parent, deadline and trace; and the key it shows."""

import os
from typing import NamedTuple

from flashmesh.worker.calls.exchange import PEER_WAIT_S, Where
from flashmesh.worker.invocation import CURRENT


class Around(NamedTuple):
    """The surroundings of one call.

    Attributes:
        chain: ids of the endpoints it comes through, the one that calls last; at most 9.
        parent: the execution that makes it. trace: a W3C traceparent of its own.
        deadline_ms: run time that its caller has left; 0 = no limit.
    """

    chain: tuple[str, ...]
    parent: str
    trace: str
    deadline_ms: int

    @classmethod
    def of_current(cls, own: str) -> "Around":
        """Of a call that is made now, by the endpoint `own`; empty: by a program that is none."""
        current, links = CURRENT.get(), (own,) if own else ()
        if current is None:
            return cls(links, "", child_trace(""), 0)
        return cls((*current.chain, *links), current.execution, child_trace(current.trace), current.remaining_ms())

    @property
    def wait_s(self) -> float:
        """How long to wait for the whole answer."""
        return min(PEER_WAIT_S, self.deadline_ms / 1000) if self.deadline_ms else PEER_WAIT_S

    def headers(self) -> str:
        """As lines of an HTTP head."""
        parent = f"X-Flash-Parent: {self.parent}\r\n" if self.parent else ""
        deadline = f"X-Flash-Deadline-Ms: {self.deadline_ms}\r\n" if self.deadline_ms else ""
        chain = f"X-Flash-Chain: {','.join(self.chain)}\r\n" if self.chain else ""
        return f"{chain}{parent}{deadline}traceparent: {self.trace}\r\n"


def bearer(where: Where, key: str) -> str:
    """The line that shows a key; none on a socket of this machine, whose folder is this user's alone."""
    return f"Authorization: Bearer {key}\r\n" if key and not isinstance(where, str) else ""


def child_trace(trace: str) -> str:
    """A W3C traceparent for a call made while `trace` runs: the same trace, a new span; a new trace without one."""
    parts = trace.split("-")
    if len(parts) == 4 and len(parts[1]) == 32:
        return f"00-{parts[1]}-{os.urandom(8).hex()}-{parts[3]}"
    ids = os.urandom(24).hex()
    return f"00-{ids[:32]}-{ids[32:]}-{parts[3] if len(parts) == 4 else '01'}"
