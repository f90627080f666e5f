"""Time that goes on whatever becomes of the machine's clock."""

import time
from typing import Final

# Linux's monotonic clock stands still while the machine sleeps, and this one does not; macOS' goes on anyway.
_PASSING: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SteadyClock:
    """UTC seconds as they were when it was made, and have passed since. For ages: nobody sets it.

    A machine without a battery learns what time it is after its services have started, and then its clock jumps by
    years. What is kept "for a day" must neither vanish then, nor stay for years.
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.time() - time.clock_gettime(_PASSING)

    def __call__(self) -> float:
        return self._since + time.clock_gettime(_PASSING)
