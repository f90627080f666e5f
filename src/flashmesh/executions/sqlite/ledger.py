"""What has ended and how much of it is kept, without naming each: which numbers retention has overtaken. No I/O.

Every ended execution gets the next number of its ledger. What retention takes is always the oldest, so one number says
all: what is numbered up to `floor` is out, and what is numbered up to `aged` is so for its age. Sizes are summed in
about a thousand groups, so that a ledger of a million executions costs the memory of a thousand; what is kept may fall
short of the bounds by one group.
"""

import dataclasses
from collections import deque
from typing import Final

from flashmesh.executions.store import Retention

_GROUPS: Final = 1024
"""Groups per bound. More: closer to the bounds, at about 150 bytes each."""


@dataclasses.dataclass(slots=True)
class _Group:
    last: int
    """Number of its newest execution."""
    count: int
    bytes: int
    first_at: float
    last_at: float


class Ledger:
    """Ended executions in the order they ended. Times are seconds of a clock that nobody sets."""

    __slots__ = (
        "_bytes_each",
        "_count_each",
        "_groups",
        "_out",
        "_seconds_each",
        "aged",
        "bytes",
        "count",
        "floor",
        "last",
    )

    def __init__(self, retention: Retention) -> None:
        self._count_each = max(1, retention.count // _GROUPS)
        self._bytes_each = retention.bytes // _GROUPS
        self._seconds_each = retention.age_s / _GROUPS
        self._groups: deque[_Group] = deque()
        self._out: deque[_Group] = deque()
        """Put out before they were old enough; merged, as only their ages count."""
        self.floor = 0
        self.aged = 0
        self.last = 0
        self.count = 0
        self.bytes = 0

    def add(self, size: int, at: float) -> int:
        """One more has ended: its number."""
        self.last += 1
        self.restore(self.last, size, at)
        return self.last

    def restore(self, number: int, size: int, at: float) -> None:
        """One that ended earlier, read back in order."""
        self.last = number
        self.count += 1
        self.bytes += size
        group = self._groups[-1] if self._groups else None
        if (
            group is None
            or group.count >= self._count_each
            or group.bytes + size > self._bytes_each
            or at - group.first_at > self._seconds_each
        ):
            self._groups.append(_Group(number, 1, size, at, at))
            return
        group.last = number
        group.count += 1
        group.bytes += size
        group.last_at = at

    def drop_oldest(self) -> None:
        """Put the oldest group out."""
        group = self._groups.popleft()
        self.floor = group.last
        self.count -= group.count
        self.bytes -= group.bytes
        newest = self._out[-1] if self._out else None
        if newest is None or group.last_at - newest.first_at > self._seconds_each:
            self._out.append(group)
        else:
            newest.last, newest.last_at = group.last, group.last_at

    def drop_older(self, than: float) -> None:
        """Put out the groups that ended before that moment as a whole."""
        while self._groups and self._groups[0].last_at < than:
            self.drop_oldest()
        while self._out and self._out[0].last_at < than:
            self.aged = self._out.popleft().last


def apply(retention: Retention, plain: Ledger, keyed: Ledger, oldest: float) -> None:
    """Hold the bounds: plain executions go, of keyed ones the results go; both go when they ended before `oldest`."""
    plain.drop_older(oldest)
    keyed.drop_older(oldest)
    while plain.count > retention.count:
        plain.drop_oldest()
    while plain.bytes + keyed.bytes > retention.bytes:
        if plain.count:
            plain.drop_oldest()
        else:
            keyed.drop_oldest()
