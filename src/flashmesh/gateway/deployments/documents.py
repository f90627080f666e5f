"""Deployments and plans as the JSON that faces answer with. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from flashmesh.gateway.state.records import Deployment, Environment, Progress
from flashmesh.project.plan import Plan, lines


def deployment_document(
    deployment: Deployment, progress: Iterable[Progress], resources: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """One deployment.

    Args:
        resources: entries of what serves, by resource name: where each answers.
    """
    return {
        "id": deployment.id,
        "number": deployment.number,
        "app": deployment.app,
        "environment": deployment.environment,
        "kind": deployment.kind,
        "build": deployment.build,
        "status": deployment.status,
        "error": deployment.error,
        "source": deployment.source,
        "by": deployment.by,
        "startedAt": moment(deployment.started_at),
        "finishedAt": moment(deployment.finished_at),
        "tookMs": None
        if deployment.finished_at is None
        else round((deployment.finished_at - deployment.started_at) * 1000),
        "resources": [_resource(one, (resources or {}).get(one.resource)) for one in progress],
    }


def _resource(one: Progress, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "resource": one.resource,
        "state": one.state,
        "error": one.error,
        "endpoint": None if entry is None else entry.get("endpoint_id"),
        "url": None if entry is None else entry.get("endpoint_url"),
    }


def environment_document(environment: Environment, workers: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """One environment. Of what serves in it only the `workers`, by endpoint id: how many are there, and how many calls
    they run."""
    return {
        "id": environment.id,
        "app": environment.app,
        "environment": environment.name,
        "build": environment.build,
        "resources": environment.resources,
        "running": environment.running,
        "createdAt": moment(environment.created_at),
        "workers": workers,
    }


def event_document(resource: str, state: str, error: str | None) -> dict[str, Any]:
    """What has happened to one resource."""
    return {"resource": resource, "state": state, "error": error}


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan for programs and, in `lines`, for people; no value of an environment variable is in it."""
    document = plan.to_dict()
    for kind in ("new", "changed", "removed", "unchanged"):
        for shown, change in zip(document[kind], getattr(plan, kind), strict=True):
            shown["lines"] = lines(change)
    return document


def moment(seconds: float | None) -> str | None:
    """Seconds since the epoch in RFC 3339."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
