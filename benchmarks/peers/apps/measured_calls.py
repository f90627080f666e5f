"""For peers that are called from Python: p50 and p99 of one call at a time, and calls per second with 32 in flight."""

import json
import time


def report(call, start, finish, seconds=2.0):
    """Args:
    call: makes one call and waits for its value.
    start, finish: begin a call without waiting, and wait for what `start` returned.
    """
    for _ in range(20):
        call()
    taken = []
    until = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < until:
        call()
        taken.append(time.perf_counter() - begin)
    taken.sort()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        for pending in [start() for _ in range(32)]:
            finish(pending)
        done += 32
    rate = done / (time.perf_counter() - begin)
    p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
    print(json.dumps({"p50_s": taken[len(taken) // 2], "p99_s": p99, "rate": rate}), flush=True)
