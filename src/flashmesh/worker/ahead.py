"""How many calls a worker asks for beyond those it can run at once, so that it need not wait for the next one.

About 2 ms of work: fast functions have many calls at hand, slow ones none, so that no call waits behind a slow one
while another worker is free.
"""

from collections import deque
from typing import Final

WORK_US: Final = 2000
"""Run time that may wait here. Higher: more throughput of tiny functions, longer waits behind a call that is slow."""
MOST: Final = 64
SAMPLES: Final = 64
FEWEST_SAMPLES: Final = 16
SLOW_US: Final = 5000
"""One call that ran longer, and nothing is asked for ahead until FEWEST_SAMPLES others have been fast again."""
_EVERY: Final = 8
QUICK_US: Final = 200
"""Calls of at most this, QUICK_SAMPLES of them in a row, and the next is expected to be over in a moment too. Higher:
more calls run while their status says that they wait."""
QUICK_SAMPLES: Final = 64


class RunTimes:
    """The last run times, and what may be asked for ahead because of them: 2 ms ÷ their 95th percentile, ≤ 64."""

    __slots__ = ("_enabled", "_in_a_row", "_latest", "_since", "allowed", "quick")

    def __init__(self, *, enabled: bool = True) -> None:
        """`enabled` False: nothing is ever asked for ahead, as for a worker that takes one call in its life."""
        self._enabled = enabled
        self._latest: deque[int] = deque(maxlen=SAMPLES)
        self._since = 0
        self.allowed = 0
        """Calls that may wait here."""
        self._in_a_row = 0
        self.quick = False
        """Every one of the last calls was over in a moment."""

    def add(self, run_us: int) -> None:
        """A call ran this long. Looks at the percentile anew every few calls."""
        if not self._enabled:
            return
        if run_us > QUICK_US:
            self._in_a_row, self.quick = 0, False
            if run_us > SLOW_US:
                self._latest.clear()
                self.allowed = self._since = 0
                return
        elif not self.quick:
            self._in_a_row += 1
            self.quick = self._in_a_row >= QUICK_SAMPLES
        self._latest.append(run_us)
        self._since += 1
        if self._since >= _EVERY and len(self._latest) >= FEWEST_SAMPLES:
            self._since = 0
            ordered = sorted(self._latest)
            slow_us = ordered[len(ordered) * 95 // 100]
            self.allowed = min(MOST, WORK_US // max(1, slow_us))
