"""What a declared resource means on this machine: pure decisions that the local target acts on."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from flashmesh.deploy.local.gpus import Devices, Gpu, NoGpu, choose
from flashmesh.deploy.local.placed import Placed, url_of
from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import BuildId, FunctionId
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.project.requirements import union
from flashmesh.queueing.plan import EndpointPlan, OwnLimits
from flashmesh.worker.spec import ModuleSpec, WorkerSpec

CRASH_LOOP: Final = 3
"""Unexpected ends of a template in a row after which waiting calls are told, and only a later call tries again."""


def callables_of(resource: ResourceSpec) -> frozenset[FunctionId]:
    """The ids that calls name: each function, and each public method of a class.

    What is `local=True` is served as well: only calls from Python stay where they are made.
    """
    return frozenset(FunctionId(name) for function in resource.functions for name in function.callables)


def endpoint_plan(resource: ResourceSpec, build: BuildId, *, by_name_only: bool = False) -> EndpointPlan:
    """What the dispatcher needs. `by_name_only`: calls name it; others may serve functions of its ids."""
    config = resource.config
    return EndpointPlan(
        name=resource.name,
        build=build,
        functions=callables_of(resource),
        workers_min=max(0, config.workers_min),
        workers_max=max(1, config.workers_max),
        max_concurrency=max(1, config.max_concurrency),
        queue_size=config.queue_size,
        execution_timeout_ms=config.execution_timeout_ms,
        retries=config.retries,
        retry_on=config.retry_on,
        mode=config.mode,
        own=_own_limits(resource),
        by_name_only=by_name_only,
    )


def _own_limits(resource: ResourceSpec) -> dict[FunctionId, OwnLimits]:
    """By callable: what a function declares for itself and its endpoint does not have."""
    shared = _limits(resource.config)
    own = {
        FunctionId(name): _limits(function.settings(resource.config))
        for function in resource.functions
        for name in function.callables
    }
    return {name: limits for name, limits in own.items() if limits != shared}


def _limits(config: ResourceConfig) -> OwnLimits:
    return OwnLimits(execution_timeout_ms=config.execution_timeout_ms, retries=config.retries, retry_on=config.retry_on)


def requirements_of(resource: ResourceSpec) -> tuple[str, ...]:
    """What the resource and its functions declare as `dependencies`."""
    return union(resource.config.dependencies, *(function.dependencies for function in resource.functions))


def system_packages_of(resource: ResourceSpec) -> tuple[str, ...]:
    """What the resource and its functions declare as `system_dependencies`, once each."""
    declared = [*resource.config.system_dependencies]
    for function in resource.functions:
        declared += function.system_dependencies
    return tuple(dict.fromkeys(declared))


def modules_of(resource: ResourceSpec, root: Path) -> list[ModuleSpec]:
    """The files that declare the resource's functions, once each, in the order of the functions."""
    files = {function.module: function.file for function in resource.functions}
    return [ModuleSpec(module=module, file=str(root / file)) for module, file in files.items()]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is the same for every endpoint of a session."""

    link: Path
    manifest: Path
    key_file: Path | None = None
    environment: str = "dev"


def worker_spec(
    resource: ResourceSpec,
    project: Project,
    build: BuildId,
    *,
    generation: int,
    surroundings: Surroundings,
    socket_path: Path,
    site_dirs: Iterable[Path],
    env: Mapping[str, str],
    cuda_devices: str | None,
    placed: Placed | None = None,
    tcp: tuple[str, int] | None = None,
) -> WorkerSpec:
    """One build of one endpoint, ready for its template. `env` stands below what the resource itself declares.

    Args:
        placed: of a deployed endpoint, whose resource has the endpoint's id for its name.
        tcp: where that one listens.
    """
    spec = WorkerSpec(
        endpoint=resource.name,
        build=build,
        generation=generation,
        project_root=str(project.root),
        sys_path=[str(project.root)],
        site_dirs=[str(folder) for folder in site_dirs],
        modules=modules_of(resource, project.root),
        functions=sorted(callables_of(resource)),
        config=resource.config.to_dict(),
        env={"FLASH_RESOURCE_NAME": resource.name, **env, **resource.config.worker_env},
        link=str(surroundings.link),
        manifest=str(surroundings.manifest),
        key_file=None if surroundings.key_file is None else str(surroundings.key_file),
        socket_path=str(socket_path),
        cuda_devices=cuda_devices,
        environment=surroundings.environment,
    )
    return spec if placed is None else _placed_spec(spec, placed, tcp)


def _placed_spec(spec: WorkerSpec, placed: Placed, tcp: tuple[str, int] | None) -> WorkerSpec:
    own = {
        "FLASH_APP": placed.app,
        "FLASH_ENV": placed.environment,
        "FLASH_TOKEN_FILE": str(placed.token_file),
        **placed.environ,
        **spec.env,
        "FLASH_RESOURCE_NAME": placed.resource_name,
    }
    return dataclasses.replace(
        spec,
        resource_name=placed.resource_name,
        environment=placed.scope,
        manifest=str(placed.manifest),
        env=own,
        tcp="" if tcp is None else url_of(tcp),
        public_key=placed.public_key.hex(),
        revocations="" if placed.revocations is None else str(placed.revocations),
        token_file=str(placed.token_file),
    )


def devices_for(config: ResourceConfig, gpus: tuple[Gpu, ...], in_use: Mapping[str, int]) -> Devices | NoGpu | None:
    """The GPUs of an endpoint's workers; None for one that declares none."""
    return choose(config, gpus, in_use) if config.gpus else None


def gives_up(status: int, failures: int) -> bool:
    """Whether a template that ended has crashed so often that its callers should be told."""
    return status != 0 and failures >= CRASH_LOOP
