"""Put what a file's import told into what syntax told. Pure."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.inspect import Inspection
from flashmesh.project.model import FunctionSpec, MethodSpec, ParameterSpec, Project, ResourceSpec
from flashmesh.project.naming import resource_stem
from flashmesh.project.resources import name_all, settled

_Place = tuple[str, str | None]
"""A configuration object: its file, and its variable or (without one) the id of the function it decorates."""


def merge(project: Project, inspection: Inspection) -> Project:
    """The project with `inspection.file` as its import declares it.

    The import wins where the two differ: configurations, and which functions there are. A failed import takes the
    file's functions away and leaves the problem that says why; unless it lacked an installed package, which its
    resource's own environment may have: then what syntax told stays.
    """
    file = inspection.file
    if inspection.missing_module is not None and file not in project.needs_import:
        return project
    kept = {_place(resource): resource for resource in _without(project.resources, file)}
    known = {function.id: function for function in project.functions if function.file == file}
    for declared in inspection.declared:
        function = _function(declared, known.get(FunctionId(declared["id"])))
        place = (declared["resource"]["file"], declared["resource"]["variable"] or function.id)
        config = ResourceConfig.from_dict(declared["config"])
        resource = kept.get(place)
        if resource is None:
            resource = _new_resource(place, declared, config, project.resources)
        functions = sorted([*resource.functions, function], key=lambda one: (one.file, one.line))
        kept[place] = dataclasses.replace(
            resource, config=settled(config, functions), functions=tuple(functions), unresolved=()
        )
    named, clashes = name_all([resource for resource in kept.values() if resource.functions])
    problems = [problem for problem in project.problems if problem.file != file and problem not in clashes]
    if inspection.problem is not None:
        problems.append(inspection.problem)
    return dataclasses.replace(
        project,
        resources=named,
        problems=tuple(dict.fromkeys([*problems, *clashes])),
        needs_import=tuple(other for other in project.needs_import if other != file),
    )


def merge_all(project: Project, inspections: Iterable[Inspection]) -> Project:
    """`merge` for several files."""
    for inspection in inspections:
        project = merge(project, inspection)
    return project


def _without(resources: Sequence[ResourceSpec], file: str) -> list[ResourceSpec]:
    """Every resource, with the functions of other files only."""
    return [
        dataclasses.replace(resource, functions=tuple(one for one in resource.functions if one.file != file))
        for resource in resources
        if any(one.file != file for one in resource.functions)
    ]


def _place(resource: ResourceSpec) -> _Place:
    return (resource.file, resource.variable or resource.functions[0].id)


def _new_resource(
    place: _Place, declared: Mapping[str, Any], config: ResourceConfig, before: Sequence[ResourceSpec]
) -> ResourceSpec:
    """A resource that only this file's functions use. Its line is what syntax said, if it knew the object."""
    file = place[0]
    line = next((resource.line for resource in before if resource.functions and _place(resource) == place), None)
    return ResourceSpec(
        name=EndpointName(resource_stem(file)),
        file=file,
        variable=declared["resource"]["variable"],
        config=config,
        functions=(),
        line=line or declared["line"],
    )


def _function(declared: Mapping[str, Any], known: FunctionSpec | None) -> FunctionSpec:
    """From plain values. Parameters keep the text the source has, where syntax saw the definition."""
    parameters = known.parameters if known is not None else _parameters(declared["parameters"])
    methods_known = {method.name: method for method in known.methods} if known is not None else {}
    methods = tuple(
        methods_known.get(method["name"]) or MethodSpec(**{**method, "parameters": _parameters(method["parameters"])})
        for method in declared["methods"]
    )
    names = {field.name for field in dataclasses.fields(FunctionSpec)}
    values = {name: value for name, value in declared.items() if name in names}
    values |= {
        "parameters": parameters,
        "methods": methods,
        "dependencies": tuple(declared["dependencies"]),
        "system_dependencies": tuple(declared["system_dependencies"]),
        "overrides": tuple((name, _as_tuple(value)) for name, value in declared["overrides"]),
    }
    return FunctionSpec(**values)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _parameters(parameters: Iterable[Mapping[str, Any]]) -> tuple[ParameterSpec, ...]:
    return tuple(ParameterSpec(**parameter) for parameter in parameters)
