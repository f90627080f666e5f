"""Identifiers as types, and how new ones are made."""

import os
import time
from typing import NewType

ExecutionId = NewType("ExecutionId", str)
"""One run of a function, as the client sees it: a UUID in its usual text form. Later ones sort behind earlier ones,
nearly: an index of them grows at its end, where random ones would change as many pages as there are ids."""

FunctionId = NewType("FunctionId", str)
"""`module.qualname` of a function or a class's method, e.g. `longruns.stage1.process`, `counter.Counter.inc`."""

EndpointName = NewType("EndpointName", str)
"""The resource name an endpoint is known by on this machine, e.g. `longruns_stage1`."""

WorkerId = NewType("WorkerId", str)
"""One worker process, unique within a session: `<endpoint>/<generation>.<index>-<pid>`."""

BuildId = NewType("BuildId", str)
"""Which version of an endpoint's code a process holds (12 hex)."""


def new_execution_id() -> ExecutionId:
    """A UUID of version 7 (the milliseconds, then 74 random bits), made without importing `uuid`."""
    raw = bytearray(os.urandom(10))
    raw[0] = raw[0] & 0x0F | 0x70
    raw[2] = raw[2] & 0x3F | 0x80
    moment, text = f"{time.time_ns() // 1_000_000:012x}", raw.hex()
    return ExecutionId(f"{moment[:8]}-{moment[8:]}-{text[:4]}-{text[4:8]}-{text[8:]}")
