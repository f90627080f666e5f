"""Whether one more call may wait, and what to tell a caller that may not."""

from flashmesh.functions.errors import QueueFull
from flashmesh.kit.ids import FunctionId
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.queues import EndpointQueue

_SHORTEST_S, _LONGEST_S = 1.0, 60.0


def admit(
    plan: EndpointPlan,
    queue: EndpointQueue,
    *,
    function: FunctionId,
    sync: bool,
    size_bytes: int,
    mean_run_s: float | None,
) -> None:
    """Raises QueueFull when the endpoint's line for this kind of call is full.

    One call of each function may always wait: for the first worker, and though calls of another function fill the line.
    """
    if sync:
        full = line_is_full(plan, queue, function=function, mean_run_s=mean_run_s)
        if full is not None:
            raise full
        if queue.sync_bytes + size_bytes > plan.queue_bytes and queue.waits(function, sync=True):
            message = (
                f"calls of {queue.sync_bytes} bytes wait for {plan.name} already. Try again later, or call it "
                "asynchronously: what is accepted to run later may be larger"
            )
            retry_after = retry_after_s(plan, queue.waiting_sync, mean_run_s)
            raise QueueFull(message, retry_after=retry_after, reason="bytes")
        return
    if queue.waiting_async < plan.backlog and queue.async_bytes + size_bytes <= plan.backlog_bytes:
        return
    message = (
        f"the backlog of {plan.name} is full: {queue.waiting_async} calls, {queue.async_bytes} bytes. "
        "Wait until some have run"
    )
    reason = "depth" if queue.waiting_async >= plan.backlog else "bytes"
    raise QueueFull(message, retry_after=retry_after_s(plan, queue.waiting_async, mean_run_s), reason=reason)


def line_is_full(
    plan: EndpointPlan, queue: EndpointQueue, *, function: FunctionId, mean_run_s: float | None
) -> QueueFull | None:
    """Why a sync call may not wait, of whatever size it is; so this can be asked before the call is read."""
    waiting = queue.waiting_sync
    if waiting < plan.queue_size or not queue.waits(function, sync=True):
        return None
    message = f"{waiting} calls wait for {plan.name} already. Try again later, or raise `queue_size`"
    return QueueFull(message, retry_after=retry_after_s(plan, waiting, mean_run_s))


def retry_after_s(plan: EndpointPlan, waiting: int, mean_run_s: float | None) -> float:
    """When a tenth of the queue will have run, in seconds: waiting × run time ÷ (10 × workers × concurrency), 1…60.

    A tenth, not one call: callers that were turned away together come back together. Without a run time yet: 1.
    """
    if mean_run_s is None:
        return _SHORTEST_S
    slots = max(1, plan.workers_max * plan.max_concurrency)
    return round(min(_LONGEST_S, max(_SHORTEST_S, waiting * mean_run_s / (10 * slots))), 1)
