"""Who makes an endpoint's workers: the local target for a project's, the adapters for external functions."""

from collections.abc import Mapping
from typing import Protocol

from flashmesh.kit.ids import EndpointName, ExecutionId
from flashmesh.queueing.ports import WorkerPort, WorkerSource
from flashmesh.wire.frames import Hello


class Scalable(Protocol):
    """An adapter, as far as scaling goes."""

    def scale(self, workers: int) -> None: ...


class Sources:
    """A WorkerSource that asks the one an endpoint belongs to. `external` is the registry's own, living mapping."""

    def __init__(self, *, local: WorkerSource, external: Mapping[EndpointName, Scalable]) -> None:
        self._local = local
        self._external = external

    def ensure(self, endpoint: EndpointName) -> None:
        if endpoint not in self._external:
            self._local.ensure(endpoint)

    def scale(self, endpoint: EndpointName, workers: int) -> None:
        function = self._external.get(endpoint)
        if function is None:
            self._local.scale(endpoint, workers)
        else:
            function.scale(workers)

    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None:
        self._local.template_linked(endpoint, hello, port)

    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None:
        self._local.template_unlinked(endpoint, port)

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None:
        if endpoint not in self._external:  # an adapter is told as the worker's port
            self._local.cancel(endpoint, execution)
