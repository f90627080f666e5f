"""The manifest: a project as the JSON document that workers, the server and deploys read. Pure.

Every declared setting is in it, except values of environment variables: only their names are.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flashmesh.functions.config import ResourceConfig
from flashmesh.project.closure import Closures
from flashmesh.project.model import FunctionSpec, Project, ResourceSpec
from flashmesh.project.naming import module_of, prefix_of

VERSION = "1.0"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAddress:
    """Where an endpoint is reached. `peer_urls`: faster roads than its own URL (`unix:/run/…/gpu.sock`)."""

    endpoint_url: str | None = None
    peer_urls: tuple[str, ...] = ()
    reentrant_url: str | None = None
    """Where calls go that come back to it while it waits for them."""
    endpoint_id: str | None = None
    status: str = "deployed"
    error: str | None = None


def build_manifest(
    project: Project,
    *,
    generated_at: datetime,
    endpoints: Mapping[str, EndpointAddress],
    closures: Closures | None = None,
) -> dict[str, Any]:
    """The manifest of a project whose resources run at `endpoints` (by resource name; one without is not up yet)."""
    closures = closures or Closures(project)
    urls = {name: address.endpoint_url for name, address in sorted(endpoints.items()) if address.endpoint_url}
    return {
        "version": VERSION,
        "generated_at": generated_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "project_name": project.name,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "source_fingerprint": closures.source_fingerprint(),
        "function_registry": function_registry(project),
        "resources": {
            resource.name: _resource(resource, closures, endpoints.get(resource.name)) for resource in project.resources
        },
        "routes": {
            resource.name: declared_routes(resource) for resource in project.resources if resource.is_load_balanced
        },
        "resources_endpoints": urls,
    }


def function_registry(project: Project) -> dict[str, str]:
    """Function id -> resource, and bare name -> resource while only one function has it."""
    registry: dict[str, str] = {}
    names: dict[str, str] = {}
    for resource in project.resources:
        for function in resource.functions:
            registry[function.id] = resource.name
            names[function.id] = function.name
    counts = Counter(names.values())
    for function_id, name in names.items():
        if counts[name] == 1:
            registry.setdefault(name, registry[function_id])
    return registry


def declared_routes(resource: ResourceSpec) -> dict[str, str]:
    """`POST /compute` -> function id, as declared: an endpoint of its own has no file prefix."""
    return {
        f"{function.http_method} {function.http_path}": function.id
        for function in resource.functions
        if function.http_method and function.http_path
    }


def _resource(resource: ResourceSpec, closures: Closures, address: EndpointAddress | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "resource_type": resource.config.resource_type,
        "file_path": resource.file,
        "local_path_prefix": prefix_of(resource.file),
        "module_path": module_of(resource.file),
        "handler_file": None,
        "config_variable": resource.variable,
        "is_load_balanced": resource.is_load_balanced,
        "makes_remote_calls": closures.makes_remote_calls(resource),
        "functions": [_function(function) for function in resource.functions],
        "config": public_config(resource.config),
        "config_hash": closures.build(resource),
    }
    if address is not None:
        entry |= {
            "endpoint_id": address.endpoint_id or resource.name,
            "endpoint_url": address.endpoint_url,
            "peer_urls": list(address.peer_urls),
            "status": address.status,
        }
        if address.error:
            entry["error"] = address.error
    return entry


def _function(function: FunctionSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": function.name,
        "id": function.id,
        "module": function.module,
        "file_path": function.file,
        "is_async": function.is_async,
        "is_class": function.kind == "class",
        "is_generator": function.is_generator,
    }
    if function.kind == "class":
        entry["class_methods"] = [method.name for method in function.methods]
    if function.http_method:
        entry |= {"http_method": function.http_method, "http_path": function.http_path}
    if function.dependencies:
        entry["dependencies"] = list(function.dependencies)
    if function.system_dependencies:
        entry["system_dependencies"] = list(function.system_dependencies)
    return entry


def public_config(config: ResourceConfig) -> dict[str, Any]:
    """Every setting; of environment variables (its own and its template's) the names only."""
    settings = config.to_dict()
    settings["env"] = sorted(config.env)
    for name in ("template", "extra"):
        if isinstance(settings[name], Mapping):
            settings[name] = {key: _names(value) if key == "env" else value for key, value in settings[name].items()}
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    """As it reads back from JSON: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _names(env: object) -> list[str]:
    """The names in an environment given as a mapping, or as RunPod's list of {"key", "value"}."""
    if isinstance(env, Mapping):
        return sorted(str(name) for name in env)
    if isinstance(env, list):
        return sorted(str(item.get("key", "")) for item in env if isinstance(item, Mapping))
    return []
