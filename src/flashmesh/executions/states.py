"""The life of an execution, as a table: every transition there is, in one place.

```
QUEUED ──start──▶ RUNNING ──succeed──▶ SUCCESS
   │  ▲              │ ├────fail─────▶ ERROR
   │  └───requeue────┘ ├──time_out───▶ TIMEOUT
   │                   └───cancel────▶ CANCELLED
   └── fail · time_out · cancel ─────▶ ERROR · TIMEOUT · CANCELLED
```

`requeue` is an internal retry and counts as a new attempt. A call that was handed to a worker and not begun there never
left QUEUED, so handing it to another worker is no event at all. What a client retries is a new execution.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from flashmesh.functions.errors import FlashmeshError


class Status(StrEnum):
    """Where an execution stands. The last four are final."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    ERROR = "ERROR"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"


class Event(StrEnum):
    """What can happen to an execution."""

    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    TIME_OUT = "time_out"
    CANCEL = "cancel"
    REQUEUE = "requeue"


class IllegalTransition(FlashmeshError):
    """That cannot happen to an execution in this state; nothing was changed."""

    code = "ILLEGAL_TRANSITION"

    def __init__(self, status: Status, event: Event) -> None:
        super().__init__(f"an execution that is {status} cannot {event}; nothing was changed. Read its status again")
        self.execution_status = status
        self.event = event


_FINAL: Final[Mapping[Event, Status]] = MappingProxyType({})

TRANSITIONS: Final[Mapping[Status, Mapping[Event, Status]]] = MappingProxyType(
    {
        Status.QUEUED: MappingProxyType(
            {
                Event.START: Status.RUNNING,
                Event.FAIL: Status.ERROR,
                Event.TIME_OUT: Status.TIMEOUT,
                Event.CANCEL: Status.CANCELLED,
            }
        ),
        Status.RUNNING: MappingProxyType(
            {
                Event.SUCCEED: Status.SUCCESS,
                Event.FAIL: Status.ERROR,
                Event.TIME_OUT: Status.TIMEOUT,
                Event.CANCEL: Status.CANCELLED,
                Event.REQUEUE: Status.QUEUED,
            }
        ),
        Status.SUCCESS: _FINAL,
        Status.ERROR: _FINAL,
        Status.TIMEOUT: _FINAL,
        Status.CANCELLED: _FINAL,
    }
)

_NEXT: Final = {status: dict(events) for status, events in TRANSITIONS.items()}  # looked at for every call
FINAL: Final = frozenset(status for status, events in TRANSITIONS.items() if not events)


def next_status(status: Status, event: Event) -> Status:
    """Where `event` leads from `status`. Raises IllegalTransition when it leads nowhere."""
    try:
        return _NEXT[status][event]
    except KeyError:
        raise IllegalTransition(status, event) from None
