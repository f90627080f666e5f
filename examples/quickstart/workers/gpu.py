"""A GPU worker. Without a GPU on this machine it runs on the CPU, and `flash run` says so once."""

import os
import time
from collections.abc import Iterator

from flashmesh import GpuGroup, LiveServerless, remote

gpu = LiveServerless(name="numbers", gpus=[GpuGroup.ANY], workersMax=2)


@remote(gpu)
def squares(values: list[float]) -> list[float]:
    """The heavy part of a pipeline: numbers in, numbers out."""
    print(f"squaring {len(values)} values in process {os.getpid()}")
    return [value * value for value in values]


@remote(gpu)
def countdown(start: int = 3) -> Iterator[int]:
    """A generator streams: each item is sent as it is made."""
    for value in range(start, 0, -1):
        yield value
        time.sleep(0.1)
