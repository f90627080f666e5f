"""A project's endpoints in the registry's terms. Pure."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET, UnsetType

from flashmesh.deploy.local.plans import callables_of
from flashmesh.functions.errors import ValidationError
from flashmesh.gateway.directory import Callee
from flashmesh.gateway.functions.names import Served
from flashmesh.gateway.functions.spec import MAX_RETRIES, ProjectPatch
from flashmesh.kit.ids import EndpointName
from flashmesh.project.model import ResourceSpec

MAX_WAIT_MS: Final = 300_000
_MODES: Final = {"WARM": "WARM", "DEPLOYMENT": "WARM", "JOB": "JOB", "REMOTE": "JOB"}


def served_of(resource: ResourceSpec) -> Served:
    """Its callables, and the names they are found by."""
    limits = {
        name: function.settings(resource.config).execution_timeout_ms
        for function in resource.functions
        for name in function.callables
    }
    callees = tuple(
        Callee(function=name, endpoint=resource.name, max_wait_ms=max(MAX_WAIT_MS, limits.get(name, 0)))
        for name in sorted(callables_of(resource))
    )
    return Served(resource.name, resource.config.name, callees, resource.config.endpoint_id)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """One endpoint of a deployed environment, as names and faces see it."""

    endpoint: EndpointName
    """Its id."""
    app: str
    environment: str
    resource: ResourceSpec
    url: str | None = None
    """Its own address."""

    def served(self) -> Served:
        """Its callables under its id, and the names they are found by in its environment."""
        found = served_of(self.resource)
        callees = () if self.resource.is_load_balanced else found.callees
        return found._replace(
            endpoint=self.endpoint,
            callees=tuple(dataclasses.replace(callee, endpoint=self.endpoint, named=True) for callee in callees),
            endpoint_id=self.endpoint,
            resource=self.resource.name,
            app=self.app,
            environment=self.environment,
        )

    def response(self, callee: Callee) -> dict[str, Any]:
        """FunctionResponse of one of its callables."""
        place = {"app": self.app, "environment": self.environment, "resource": self.resource.name}
        return {**response(self.resource, callee), "endpoint": self.endpoint, **place, "endpointUrl": self.url}


def response(resource: ResourceSpec, callee: Callee) -> dict[str, Any]:
    """FunctionResponse of one of its callables. No run-time limit: `timeoutMs` null."""
    function = next((found for found in resource.functions if callee.function in found.callables), None)
    config = resource.config if function is None else function.settings(resource.config)
    body: dict[str, Any] = {
        "name": callee.function,
        "image": config.image or "",
        "endpoint": resource.name,
        "timeoutMs": config.execution_timeout_ms or None,
        "concurrency": max(1, config.workers_max) * max(1, config.max_concurrency),
        "queueSize": config.queue_size,
        "maxRetries": max(config.retries, MAX_RETRIES),
        "executionMode": config.mode,
        "requestedExecutionMode": config.mode,
        "effectiveExecutionMode": config.mode,
        "workersMin": config.workers_min,
        "workersMax": config.workers_max,
    }
    if function is not None and function.doc:
        body["description"] = function.doc
    if config.worker_env:
        body["env"] = dict.fromkeys(config.worker_env, "***")
    return body


def changes_of(patch: ProjectPatch) -> dict[str, Any]:
    """What a PATCH changes, under ResourceConfig's names. Raises ValidationError naming the field."""
    changes: dict[str, Any] = {}
    for field, given in (("mode", patch.mode), ("executionMode", patch.execution_mode)):
        if isinstance(given, UnsetType):
            continue
        mode = _MODES.get(given)
        if mode is None:
            raise ValidationError(f"{field}: {given!r}; a project's functions are WARM or JOB", field=field)
        if changes.setdefault("mode", mode) != mode:
            raise ValidationError("executionMode: says something else than `mode`", field="executionMode")
    counts = {"workers_min": patch.workers_min, "workers_max": patch.workers_max}
    return changes | {name: count for name, count in counts.items() if count is not UNSET}


def changed(resource: ResourceSpec, changes: Mapping[str, Any]) -> ResourceSpec:
    """The resource with them. Raises ValidationError when the worker counts contradict each other."""
    config = dataclasses.replace(resource.config, **changes)
    if config.workers_min > config.workers_max:
        raise ValidationError(
            f"workersMin: {config.workers_min} is more than workersMax, {config.workers_max}", field="workersMin"
        )
    return dataclasses.replace(resource, config=config)
