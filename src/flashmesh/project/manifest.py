"""The manifest: a project as the JSON document that workers, the server and deploys read. Pure.

Every declared setting is in it, except values of environment variables: only their names are.
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from flashmesh.functions.config import ResourceConfig
from flashmesh.project.closure import Closures
from flashmesh.project.model import FunctionSpec, MethodSpec, ParameterSpec, Project, ResourceSpec
from flashmesh.project.naming import module_of, prefix_of, short_hash

VERSION = "1.0"
COUNTS: Final = frozenset({"workers_min", "workers_max", "scaler_type", "scaler_value"})
"""Settings that are changed in place: another value is no other version."""
_LONGEST_NAME: Final = 200
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
"""What an object's text has of its place in memory: another one in every process."""


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
    generated_at: datetime | None = None,
    endpoints: Mapping[str, EndpointAddress] | None = None,
    closures: Closures | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest of a project.

    Args:
        generated_at: left out of what is packed: the same sources make the same bytes.
        endpoints: where its resources run, by name; one without is not up yet. None: nothing of it is deployed.
        files: path -> digest of what the build packs beside the scanned Python files. A change of one of these, where
            no static import reaches it, changes every resource.
    """
    closures = closures or Closures(project)
    reached = {resource.name: closures.sources(resource) for resource in project.resources}
    everybodys = _without_importers(files or {}, reached.values())
    manifest: dict[str, Any] = {
        "version": VERSION,
        "project_name": project.name,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "source_fingerprint": closures.source_fingerprint(),
        "requirements": list(project.requirements),
        "function_registry": function_registry(project),
        "resources": {
            resource.name: {
                **_resource(resource, closures.makes_remote_calls(resource)),
                **_version(resource, project.requirements, reached[resource.name], everybodys),
                **_deployed(resource, (endpoints or {}).get(resource.name)),
            }
            for resource in project.resources
        },
        "routes": {
            resource.name: declared_routes(resource) for resource in project.resources if resource.is_load_balanced
        },
    }
    if generated_at is not None:
        manifest["generated_at"] = generated_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if endpoints is not None:
        urls = {name: address.endpoint_url for name, address in sorted(endpoints.items()) if address.endpoint_url}
        manifest["resources_endpoints"] = urls
    return manifest


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


def handler_file(resource: str) -> str:
    """Where a build puts the file that starts a resource's endpoint. Names too long for a file system get a hash."""
    fits = len(resource.encode()) <= _LONGEST_NAME
    return f"handlers/handler_{resource if fits else resource[:80] + '_' + short_hash(resource)}.py"


def _resource(resource: ResourceSpec, makes_remote_calls: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "resource_type": resource.config.resource_type,
        "file_path": resource.file,
        "local_path_prefix": prefix_of(resource.file),
        "module_path": module_of(resource.file),
        "handler_file": handler_file(resource.name),
        "config_variable": resource.variable,
        "line": resource.line,
        "is_load_balanced": resource.is_load_balanced,
        "makes_remote_calls": makes_remote_calls,
        "functions": [_function(function) for function in resource.functions],
        "config": public_config(resource.config),
    }
    if resource.unresolved:
        entry["unresolved"] = list(resource.unresolved)
    return entry


def _version(
    resource: ResourceSpec, requirements: tuple[str, ...], sources: Mapping[str, str], everybodys: Mapping[str, str]
) -> dict[str, Any]:
    """What identifies this version of a resource, as a whole and by cause."""
    settings = {name: value for name, value in public_config(resource.config).items() if name not in COUNTS}
    hashes = {
        "config": _hash([settings, [_function(function) for function in resource.functions]]),
        "code": _hash(dict(sorted(sources.items()))),
        "files": _hash(dict(sorted(everybodys.items()))),
        "requirements": _hash(list(requirements)),
    }
    return {"config_hash": _hash(hashes), "hashes": hashes, "sources": dict(sorted(sources.items()))}


def _without_importers(files: Mapping[str, str], reached: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The files that no resource imports as far as syntax tells: any of them may read or load these."""
    imported = {file for sources in reached for file in sources}
    return {file: digest for file, digest in files.items() if file not in imported}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _deployed(resource: ResourceSpec, address: EndpointAddress | None) -> dict[str, Any]:
    if address is None:
        return {}
    entry: dict[str, Any] = {
        "endpoint_id": address.endpoint_id or resource.name,
        "endpoint_url": address.endpoint_url,
        "peer_urls": list(address.peer_urls),
        "status": address.status,
    }
    return {**entry, "error": address.error} if address.error else entry


def _function(function: FunctionSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": function.name,
        "id": function.id,
        "module": function.module,
        "qualname": function.qualname,
        "file_path": function.file,
        "line": function.line,
        "is_async": function.is_async,
        "is_class": function.kind == "class",
        "is_generator": function.is_generator,
        "decorated_by": function.decorated_by,
        "parameters": [_parameter(parameter) for parameter in function.parameters],
    }
    if function.kind == "class":
        entry["class_methods"] = [method.name for method in function.methods]
        entry["methods"] = [_method(method) for method in function.methods]
    if function.http_method:
        entry |= {"http_method": function.http_method, "http_path": function.http_path}
    if function.dependencies:
        entry["dependencies"] = list(function.dependencies)
    if function.system_dependencies:
        entry["system_dependencies"] = list(function.system_dependencies)
    if function.doc is not None:
        entry["doc"] = function.doc
    if function.local:
        entry["local"] = True
    if not function.accelerate_downloads:
        entry["accelerate_downloads"] = False
    if function.overrides:
        entry["overrides"] = {name: _plain(value) for name, value in function.overrides}
    return entry


def _method(method: MethodSpec) -> dict[str, Any]:
    entry = {"name": method.name, "line": method.line, "is_async": method.is_async, "is_generator": method.is_generator}
    if method.doc is not None:
        entry["doc"] = method.doc
    return {**entry, "parameters": [_parameter(parameter) for parameter in method.parameters]}


def _parameter(parameter: ParameterSpec) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(parameter).items() if value is not None}


def public_config(config: ResourceConfig) -> dict[str, Any]:
    """Every setting; of environment variables (its own and its template's) the names only."""
    plain: dict[str, Any] = _plain(config.to_dict())
    return plain


def _plain(value: Any) -> Any:
    """As it reads back from JSON, lists for tuples; of every environment in it, however deep, the names only."""
    match value:
        case Mapping():
            return {str(key): _names(item) if key == "env" else _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case set() | frozenset():
            return sorted((_plain(item) for item in value), key=repr)
        case Enum():
            return _plain(value.value)
        case str() | int() | float() | None:
            return value
        case _:
            return _ADDRESS.sub("", repr(value))


def _names(env: object) -> list[str]:
    """The names in an environment given as a mapping, or as RunPod's list of {"key", "value"}."""
    if isinstance(env, Mapping):
        return sorted(str(name) for name in env)
    if isinstance(env, (list, tuple)):
        return sorted(str(item.get("key", "")) for item in env if isinstance(item, Mapping))
    return []
