"""Whether a call that did not succeed is tried again, and when.

Retried: what is known not to have run (always, and without counting as an attempt), what the function itself declares
retriable, and a lost worker's call when running it twice is acceptable: async, or sync with an idempotency key or
`retries`. A generator that has yielded is never repeated: its reader has seen the items.
"""

import builtins

from flashmesh.executions.backoff import backoff_s
from flashmesh.executions.record import Kind
from flashmesh.queueing.plan import EndpointPlan

__all__ = ["after_exception", "after_failed_start", "after_lost_worker", "after_timeout", "backoff_s"]


def after_lost_worker(
    plan: EndpointPlan, kind: Kind, *, attempt: int, keyed: bool, yielded: bool, own: int | None = None
) -> bool:
    """Whether a call that had begun on a worker that died is tried again. `own`: what the call itself allows."""
    if yielded:
        return False
    extra = plan.max_retries if own is None else own
    return attempt <= (max(plan.retries, extra) if kind == "async" or keyed else plan.retries)


def after_failed_start(plan: EndpointPlan, kind: Kind, *, failures: int, own: int | None = None) -> bool:
    """Whether a call whose endpoint could not be started waits for another try. `failures` counts this one."""
    return kind == "async" and failures <= (plan.max_retries if own is None else own)


def after_timeout(plan: EndpointPlan, *, attempt: int, yielded: bool) -> bool:
    """Whether a call that ran into its run-time limit is tried again."""
    return not yielded and attempt <= plan.retries and (not plan.retry_on or _matches(plan, "builtins.TimeoutError"))


def after_exception(plan: EndpointPlan, exception: str, *, attempt: int, yielded: bool) -> bool:
    """Whether a call whose body raised `exception` (`module.qualname`) is tried again."""
    if yielded or attempt > plan.retries:
        return False
    return not plan.retry_on or _matches(plan, exception)


def _matches(plan: EndpointPlan, exception: str) -> bool:
    """By name; for built-in exceptions their bases count too, so that `retry_on=(OSError,)` covers ConnectionError."""
    module, _, name = exception.rpartition(".")
    names = {exception, name}
    if module in ("", "builtins"):
        found = getattr(builtins, name, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            names |= {known for base in found.__mro__ for known in (base.__name__, f"builtins.{base.__name__}")}
    return not names.isdisjoint(plan.retry_on)
