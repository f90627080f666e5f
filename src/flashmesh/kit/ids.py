"""Identifiers as types, and how new ones are made."""

import os
from typing import NewType

ExecutionId = NewType("ExecutionId", str)
"""One run of a function, as the client sees it: a random UUID in its usual text form."""

FunctionId = NewType("FunctionId", str)
"""`module.qualname` of a function or a class's method, e.g. `longruns.stage1.process`, `counter.Counter.inc`."""

EndpointName = NewType("EndpointName", str)
"""The resource name an endpoint is known by on this machine, e.g. `longruns_stage1`."""

WorkerId = NewType("WorkerId", str)
"""One worker process, unique within a session: `<endpoint>/<generation>.<index>-<pid>`."""

BuildId = NewType("BuildId", str)
"""Which version of an endpoint's code a process holds (12 hex)."""


def new_execution_id() -> ExecutionId:
    """A random UUID (version 4), made without importing `uuid`."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return ExecutionId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
