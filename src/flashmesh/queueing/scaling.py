"""How many workers an endpoint should have: asked when a call comes, when one ends and when one has waited."""

import dataclasses
from math import ceil
from typing import Final

from flashmesh.queueing.plan import EndpointPlan

PATIENCE_S: Final = 0.002
"""How long calls may wait before one more worker is made; doubles per worker. Lower: more memory for short bursts."""
_SOONEST_S: Final = 0.0005
SHORT_RUN_S: Final = 0.02
"""Mean run time up to which waiting a little is cheaper than another worker."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One endpoint's load at a moment."""

    waiting: int
    running: int
    workers: int
    """Ready, or asked for and on their way; without those that are leaving."""
    oldest_wait_s: float = 0.0
    mean_run_s: float | None = None
    """Of recent calls; None before the first has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """`workers` should be there; with `look_again_s`, ask again after that long if calls still wait."""

    workers: int
    look_again_s: float | None = None


def wanted_workers(demand: Demand, plan: EndpointPlan) -> Wanted:
    """At most one worker per `max_concurrency` calls, within min and max.

    A worker for every waiting call when calls run long (or nobody knows yet). When they are short, one more only once
    a call has waited for PATIENCE × 2^workers: by then the workers that are there have usually caught up.
    """
    low = min(plan.workers_min, plan.workers_max)
    if not demand.waiting:
        return Wanted(max(low, min(demand.workers, plan.workers_max)))
    capacity = max(1, plan.max_concurrency)
    ceiling = min(plan.workers_max, ceil((demand.waiting + demand.running) / capacity))
    enough = max(demand.workers, low, 1)
    if ceiling <= enough:
        return Wanted(min(enough, plan.workers_max))
    if plan.mode == "JOB" or demand.mean_run_s is None or demand.mean_run_s > SHORT_RUN_S:
        return Wanted(ceiling)
    if demand.workers == 0:
        return Wanted(enough, PATIENCE_S)
    patience = PATIENCE_S * 2 ** min(demand.workers, 10)
    if demand.oldest_wait_s >= patience:
        return Wanted(enough + 1, patience * 2)
    # A timer fires a rounding error early; without a floor it would be set again and again for the same moment.
    return Wanted(enough, max(patience - demand.oldest_wait_s, _SOONEST_S))
