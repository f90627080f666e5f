"""One function made by POST, and what stands for it."""

from typing import Protocol

from flashmesh.gateway.directory import Callee
from flashmesh.gateway.functions.external.far_end import FarEnd
from flashmesh.gateway.functions.names import Served
from flashmesh.gateway.functions.project_functions import MAX_WAIT_MS
from flashmesh.gateway.functions.spec import TIMEOUT_MS, External
from flashmesh.kit.ids import EndpointName
from flashmesh.queueing.plan import EndpointPlan


class Adapter(Protocol):
    """What stands for a function that is not Python of ours: HttpFunction, CommandFunction, PerCallFunction."""

    def start(self) -> None: ...

    def scale(self, workers: int) -> None: ...

    def amend(self, external: External) -> None: ...

    def far_ends(self) -> tuple[FarEnd, ...]: ...

    def retire(self) -> None: ...

    async def close(self) -> None: ...


class Posted:
    """One function made by POST. `closing`: it is being removed."""

    def __init__(self, external: External, plan: EndpointPlan, created_at: float, adapter: Adapter) -> None:
        self.external = external
        self.plan = plan
        self.created_at = created_at
        self.adapter = adapter
        self.closing = False

    @property
    def replicas(self) -> int:
        """How many of it there are to be at least."""
        external = self.external
        return 1 if external.target or external.per_call else external.processes_min

    def served(self) -> Served:
        """Its names."""
        external = self.external
        name = EndpointName(external.name)
        limit = external.spec.timeout_ms
        callee = Callee(
            function=external.name,
            endpoint=name,
            external=True,
            wait_ms=limit if limit > TIMEOUT_MS else None,
            max_wait_ms=max(MAX_WAIT_MS, limit),
        )
        return Served(name, None, (callee,))
