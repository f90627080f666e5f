"""Counts where a process spends its CPU time: SIGPROF by the process's CPU clock, and whose code it finds.

It is copied beside the measured programs, so it imports nothing of ours. Python hears a signal only between two of its
own instructions: time in C code that Python called counts for the caller, and time of the event loop and the kernel
shows at the very first instruction of the next callback, by which it is told from the callback's own.
"""

import collections
import signal
import sys

INTERVAL_S = 0.001
LOOP = "loop"
_FIRST = 8
"""Bytes of bytecode that a function begins with, before anything of its own."""

counts: collections.Counter = collections.Counter()


def _sample(_number, frame):
    here, root, depth, entered = "", "", 0, False
    at = frame
    while at is not None:
        place = at.f_code.co_filename
        if "/asyncio/" in place or place.endswith("/runpy.py"):
            break
        if "/flashmesh/" in place or "/jobs" in place:
            name = place.partition("/flashmesh/")[2] or "user"
            here = here or name
            root = name
            depth += 1
            entered = at.f_lasti < _FIRST
        at = at.f_back
    if not here or (depth == 1 and entered):
        here = LOOP
    counts[f"{root} {here}"] += 1


def start():
    signal.signal(signal.SIGPROF, _sample)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)


def take():
    """What was counted since the last time: `root file` and `file`, by a space, to how often."""
    found = dict(counts)
    counts.clear()
    return found


def dump_on_signal(path):
    """Write what `take` gives to a file whenever SIGUSR2 comes."""
    import json
    from pathlib import Path

    def dump(_number, _frame):
        new = Path(path + ".new")
        new.write_text(json.dumps(take()))
        new.replace(path)

    signal.signal(signal.SIGUSR2, dump)


if __name__ == "__main__":
    dump_on_signal(sys.argv.pop(1))
    start()
    from flashmesh.cli import main

    sys.argv[0] = "flash"
    main()
