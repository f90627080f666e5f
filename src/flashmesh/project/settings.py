"""What flash.toml says about a project's resources; it wins over what the code declares.

[resources.gpu_worker]            # the resource's name, or its declared `name=`
mode = "JOB"
target = "local"
workers = [1, 3]                  # or one number: at most that many
env = { MODEL = "large" }         # added to what the code gives
volumes = ["models", { name = "cache", size = 50 }]
idle_timeout = 30                 # any other setting, under any of its names
"""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from flashmesh.functions import checks
from flashmesh.functions.config import ResourceConfig, VolumeConfig
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.nearest import did_you_mean
from flashmesh.functions.resources import Resource
from flashmesh.functions.templates import template
from flashmesh.functions.volumes import NetworkVolume
from flashmesh.project.model import Problem, Project, ResourceSpec

FILE: Final = "flash.toml"
_IDENTITY: Final = frozenset({"name", "id", "type", "resource_type", "is_load_balanced", "endpoint_id"})
"""What a resource is, as opposed to how it runs: only its code says that."""

_Apply = Callable[[ResourceConfig, str, Any], dict[str, Any]]
"""(configuration so far, the name as written, the value) -> the fields it sets. Raises DeclarationError."""


def read_settings(root: Path) -> Mapping[str, Any]:
    """The document, empty without the file. What TOML does not accept is under the key `problem`, as text."""
    try:
        return tomllib.loads((root / FILE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {"problem": f"it cannot be read: {error}"}


def with_settings(project: Project) -> Project:
    """The project as flash.toml has it. What cannot be used is a problem of that file, and changes nothing. Pure."""
    written = project.written
    problems = [_problem(written["problem"])] if isinstance(written.get("problem"), str) else []
    tables = written.get("resources", {})
    if not isinstance(tables, Mapping):
        problems.append(_problem("resources must be tables, such as [resources.gpu_worker]"))
        tables = {}
    resources = {resource.name: resource for resource in project.resources}
    for key, table in tables.items():
        chosen = _named(project, key)
        if not chosen:
            known = ", ".join(resources) or "none"
            problems.append(_problem(f"[resources.{key}] names no resource of this project. There are: {known}"))
        elif not isinstance(table, Mapping):
            problems.append(_problem(f"resources.{key} must be a table of settings: [resources.{key}]"))
        else:
            for resource in chosen:
                configured, wrong = _configured(resources[resource.name], key, table)
                resources[resource.name] = configured
                problems += wrong
    if not (tables or problems):
        return project
    return dataclasses.replace(
        project, resources=tuple(resources.values()), problems=tuple(dict.fromkeys([*project.problems, *problems]))
    )


def _named(project: Project, key: str) -> list[ResourceSpec]:
    exact = [resource for resource in project.resources if resource.name == key]
    return exact or [resource for resource in project.resources if resource.config.name == key]


def _configured(resource: ResourceSpec, key: str, table: Mapping[str, Any]) -> tuple[ResourceSpec, list[Problem]]:
    config, problems = resource.config, []
    changed: set[str] = set()
    for name, value in table.items():
        try:
            apply = _find(name)
            fields = apply(config, name, value)
        except (DeclarationError, TypeError) as error:
            problems.append(_problem(f"[resources.{key}] {error}"))
            continue
        config = dataclasses.replace(config, **fields)
        changed |= fields.keys()
    if config.workers_min > config.workers_max:
        fewest, most = config.workers_min, config.workers_max
        reason = f"[resources.{key}] workers: the minimum {fewest} is above the maximum {most}"
        return resource, [*problems, _problem(reason)]
    functions = tuple(
        dataclasses.replace(one, overrides=tuple(own for own in one.overrides if own[0] not in changed))
        for one in resource.functions
    )
    unresolved = tuple(name for name in resource.unresolved if not _fields_of(name) & changed)
    return dataclasses.replace(resource, config=config, functions=functions, unresolved=unresolved), problems


def _problem(reason: str) -> Problem:
    return Problem(file=FILE, line=None, reason=reason)


def _find(name: str) -> _Apply:
    if name in _IDENTITY:
        raise DeclarationError(f"{name} belongs into the code: it is part of what the resource is.")
    if name == "aiKey":
        raise DeclarationError("aiKey is a secret and has no place in a file. Set RUNPOD_API_KEY in the environment.")
    own = _OWN.get(name)
    if own is not None:
        return own
    setting = Resource.settings.get(name)
    field = name if name in _FIELDS.values() else None
    canonical = setting.name if setting is not None else next((to for to, its in _FIELDS.items() if its == field), None)
    if canonical is None:
        known = [*_OWN, *Resource.settings]
        raise DeclarationError(f"there is no setting {name}{did_you_mean(name, known)}.")
    if canonical in _SPECIAL:
        return _SPECIAL[canonical]

    def apply(config: ResourceConfig, written: str, value: Any) -> dict[str, Any]:
        row = Resource.settings[canonical]
        checked = row.check(written, value)
        target = _FIELDS.get(canonical)
        if target is None:  # it means something to one target alone
            return {"extra": {**config.extra, canonical: value}}
        return {target: getattr(checked, "value", checked)}

    return apply


def _fields_of(name: str) -> set[str]:
    """The configuration's fields that a declared setting's name stands for."""
    setting = Resource.settings.get(name)
    canonical = name if setting is None else setting.name
    named = {"workers": {"workers_min", "workers_max"}, "gpus": {"gpus"}, "instanceIds": {"cpus"}}
    return named.get(canonical, {_FIELDS.get(canonical, _RENAMED.get(canonical, canonical))})


def _workers(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    fewest, most = checks.workers(name, value)
    return {"workers_min": fewest, "workers_max": most}


def _gpus(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    found = tuple(gpu.name for gpu in checks.gpus(name, value))
    return {"gpus": found, "cpus": (), "gpu_count": config.gpu_count or 1}


def _cpus(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    found = tuple(size.value for size in checks.cpu_instances(name, value))
    return {"cpus": found, "gpus": (), "gpu_count": 0, "min_cuda_version": None}


def _env(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    return {"env": {**config.worker_env, **checks.environment(name, value)}}


def _volumes(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    items = value if isinstance(value, list) else [value]
    found = []
    for item in items:
        if not isinstance(item, (str, Mapping)):
            raise DeclarationError(f"{name} must be names of volumes, or tables with name and size, got {item!r}.")
        given: dict[str, Any] = {"name": item} if isinstance(item, str) else dict(item)
        found.append(NetworkVolume(**given).to_config())
    return {"volumes": tuple(found)}


def _volume_id(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    return {"volumes": (VolumeConfig(id=checks.some_text(name, value)),)}


def _locations(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    return _datacenters(config, name, [place.strip() for place in checks.some_text(name, value).split(",")])


def _datacenters(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    return {"datacenters": tuple(center.value for center in checks.datacenters(name, value))}


def _template(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    return {"template": template(name, value).to_dict()}


def _packages(field: str) -> _Apply:
    def apply(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
        return {field: tuple(checks.texts(name, value))}

    return apply


def _accelerate(config: ResourceConfig, name: str, value: Any) -> dict[str, Any]:
    return {"accelerate_downloads": checks.flag(name, value)}


_OWN: Final[Mapping[str, _Apply]] = {
    "workers": _workers,
    "dependencies": _packages("dependencies"),
    "system_dependencies": _packages("system_dependencies"),
    "accelerate_downloads": _accelerate,
}
"""Settings that resource classes have no row for."""

_SPECIAL: Final[Mapping[str, _Apply]] = {
    "gpus": _gpus,
    "instanceIds": _cpus,
    "env": _env,
    "networkVolume": _volumes,
    "networkVolumes": _volumes,
    "networkVolumeId": _volume_id,
    "datacenter": _datacenters,
    "locations": _locations,
    "template": _template,
}
"""Settings whose value takes more than its check to become a configuration's."""

_FIELDS: Final[Mapping[str, str]] = {
    "gpuCount": "gpu_count",
    "workersMin": "workers_min",
    "workersMax": "workers_max",
    "idleTimeout": "idle_timeout_s",
    "executionTimeoutMs": "execution_timeout_ms",
    "scalerType": "scaler_type",
    "scalerValue": "scaler_value",
    "flashboot": "flashboot",
    "imageName": "image",
    "templateId": "template_id",
    "minCudaVersion": "min_cuda_version",
    "python_version": "python_version",
    "max_concurrency": "max_concurrency",
    "queue_size": "queue_size",
    "mode": "mode",
    "retries": "retries",
    "retry_on": "retry_on",
    "preload": "preload",
    "gpu_share": "gpu_share",
    "public": "public",
    "target": "target",
}
"""Flash's name of a setting -> the configuration's field."""

_RENAMED: Final = {"networkVolume": "volumes", "networkVolumes": "volumes", "datacenter": "datacenters"}
