"""Projects as data, for tests of what is made from them."""

from pathlib import Path

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.model import FunctionSpec, MethodSpec, ParameterSpec, Problem, Project, ResourceSpec, Route

QB_VERBS = (("POST", "run"), ("POST", "run_sync"), ("POST", "runsync"))


def function(module: str, name: str, **fields: object) -> FunctionSpec:
    values: dict[str, object] = {
        "id": FunctionId(f"{module}.{name}"),
        "name": name,
        "module": module,
        "file": module.replace(".", "/") + ".py",
        "line": 7,
        "qualname": name,
    }
    return FunctionSpec(**{**values, **fields})  # type: ignore[arg-type]


def resource(name: str, *functions: FunctionSpec, lb: bool = False, **config: object) -> ResourceSpec:
    kind = "CpuLiveLoadBalancer" if lb else "LiveServerless"
    declared = ResourceConfig(resource_type=kind, is_load_balanced=lb, **config)  # type: ignore[arg-type]
    return ResourceSpec(
        name=EndpointName(name), file=functions[0].file, variable="config", config=declared, functions=functions
    )


def sample_project(*problems: Problem) -> tuple[Project, list[Route]]:
    """Two queue-based files, a class and an HTTP file, with the routes they have."""
    process = function(
        "gpu_worker", "process", doc="Says it.", parameters=(ParameterSpec(name="data", annotation="dict"),)
    )
    stage = function("longruns.stage1", "stage1")
    inc = MethodSpec(
        name="inc", line=12, parameters=(ParameterSpec(name="self"), ParameterSpec(name="by", default="1"))
    )
    counter = function("counter", "Counter", kind="class", methods=(inc,))
    first = function("preprocess.first_pass", "first_pass", http_method="POST", http_path="/compute", line=9)
    project = Project(
        root=Path("/project"),
        name="project",
        resources=(
            resource("gpu_worker", process),
            resource("longruns_stage1", stage),
            resource("counter", counter),
            resource("preprocess_first_pass", first, lb=True, dependencies=("pillow",)),
        ),
        problems=problems,
    )
    routes = [
        *queue_routes("/gpu_worker", process, "gpu_worker"),
        *queue_routes("/longruns/stage1", stage, "longruns_stage1"),
        *queue_routes("/counter", counter, "counter", callable_="inc"),
        Route(
            method="POST",
            path="/preprocess/first_pass/compute",
            function=first.id,
            resource=EndpointName("preprocess_first_pass"),
            file=first.file,
            kind="LB",
        ),
    ]
    return project, routes


def queue_routes(prefix: str, spec: FunctionSpec, resource_name: str, *, callable_: str = "") -> list[Route]:
    return [
        Route(
            method=method,
            path=f"{prefix}/{verb}",
            function=spec.id,
            resource=EndpointName(resource_name),
            file=spec.file,
            kind="QB",
            callable=callable_,
            verb=verb,  # type: ignore[arg-type]
        )
        for method, verb in QB_VERBS
    ]
