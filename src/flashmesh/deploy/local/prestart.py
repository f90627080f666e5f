"""Warms endpoints before their first call: one template at a time, while memory allows."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

MOST: Final = 24
"""Templates started ahead. More would help nobody: an endpoint that is not among them starts at its first call."""
LEAST_FREE: Final = 0.25
"""Share of the machine's memory that must be free for one more. Lower: more first calls are fast, others swap."""
_WAIT_S: Final = 60.0


async def prestart(
    endpoints: Sequence[str], *, start: Callable[[str], bool], imported: Callable[[str], Awaitable[object]]
) -> None:
    """Start the templates of `endpoints`, in this order.

    Args:
        start: starts one; False when it may not be started ahead.
        imported: returns when that one has tried its import.
    """
    for name in endpoints[:MOST]:
        if free_memory() < LEAST_FREE:
            return
        if not start(name):
            continue
        try:
            async with asyncio.timeout(_WAIT_S):
                await imported(name)
        except TimeoutError:
            continue  # the template's own limit ends it; the others need not wait for that


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> float:
    """The share of memory that is available, 0 to 1; 1 where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) / int(lines["MemTotal"].split()[0])
    except (OSError, KeyError, ValueError, IndexError, ZeroDivisionError):
        return 1.0
