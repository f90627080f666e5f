"""What the dispatcher needs to know about an endpoint to feed it."""

import dataclasses
from collections.abc import Mapping
from typing import Final

from flashmesh.kit.ids import BuildId, EndpointName, FunctionId

MAX_SYNC_BYTES: Final = 256 * 1024**2
"""Payload bytes of the sync calls one endpoint may have waiting. They are nowhere but in memory."""
MAX_ASYNC_BACKLOG: Final = 100_000
"""Async calls one endpoint may have waiting. Each costs about 1 KB beside its payload."""
MAX_ASYNC_BACKLOG_BYTES: Final = 1024**3
"""Payload bytes of the async calls one endpoint may have waiting."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnLimits:
    """What one function declares for its own calls; as in EndpointPlan."""

    execution_timeout_ms: int = 0
    retries: int = 0
    retry_on: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPlan:
    """One endpoint as declared; declaring it again under the same name is an update."""

    name: EndpointName
    build: BuildId
    """12 hex over configuration and sources: which workers run the current code."""
    functions: frozenset[FunctionId]
    """Callable ids: `module.qualname`, and for a class one `module.Class.method` per public method."""
    workers_min: int = 0
    workers_max: int = 1
    max_concurrency: int = 1
    """Calls one worker runs at a time."""
    queue_size: int = 1000
    """Sync calls that may wait."""
    queue_bytes: int = MAX_SYNC_BYTES
    execution_timeout_ms: int = 0
    """Run-time limit of one call, counted from its start; 0 = none."""
    retries: int = 0
    """Extra attempts the function declared for itself: user exceptions of `retry_on`, time limits, lost workers."""
    retry_on: tuple[str, ...] = ()
    """Exception types (`module.qualname`); empty with `retries` means every Exception."""
    max_retries: int = 3
    """Extra attempts of an async call whose worker was lost or whose endpoint did not start."""
    mode: str = "WARM"
    own: Mapping[FunctionId, OwnLimits] = dataclasses.field(default_factory=dict)
    """Callables whose limits differ from the endpoint's."""
    backlog: int = MAX_ASYNC_BACKLOG
    backlog_bytes: int = MAX_ASYNC_BACKLOG_BYTES
    by_name_only: bool = False
    """Another endpoint may serve functions of the same ids (another environment of the app): calls name theirs."""

    def limit_ms(self, function: FunctionId) -> int:
        """The run-time limit of one call of `function`; 0 = none."""
        own = self.own.get(function)
        return self.execution_timeout_ms if own is None else own.execution_timeout_ms

    def of(self, function: FunctionId) -> "EndpointPlan":
        """The plan as it is for calls of `function`."""
        own = self.own.get(function)
        if own is None:
            return self
        return dataclasses.replace(
            self, execution_timeout_ms=own.execution_timeout_ms, retries=own.retries, retry_on=own.retry_on
        )
