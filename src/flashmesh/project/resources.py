"""From declared functions to resources: one per configuration object, with a name no other has. Pure."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import EndpointName
from flashmesh.project.configs import Built, build, refusal
from flashmesh.project.declarations import Declared
from flashmesh.project.model import FunctionSpec, Problem, Project, ResourceSpec
from flashmesh.project.naming import prefix_of, resource_name, resource_stem, short_hash
from flashmesh.project.values import Config, Invalid
from flashmesh.project.vocabulary import Vocabulary

SHARED: Final = ("gpu_share", "max_concurrency", "mode", "preload", "queue_size")
"""Settings of a function that are properties of its endpoint's processes or queue."""


def resources_of(declared: Iterable[Declared], vocabulary: Vocabulary) -> tuple[list[ResourceSpec], list[Problem]]:
    """Group functions by their configuration object. A configuration that cannot be made loses its functions."""
    groups: dict[Config, list[Declared]] = defaultdict(list)
    for declaration in declared:
        groups[declaration.config].append(declaration)
    resources: list[ResourceSpec] = []
    problems: list[Problem] = []
    for config, members in groups.items():
        built = _build(config, members, vocabulary)
        if isinstance(built, Invalid):
            problems += _refused(built, members)
            continue
        accepted: list[Declared] = []
        for member in members:
            reason = refusal(built, vocabulary, member.function, member.keywords)
            if reason is None:
                accepted.append(member)
            else:
                problems.append(_lost(member.function.file, member.line, reason))
        if accepted:
            resources.append(_resource(config, accepted, built))
    return resources, problems


def settled(config: ResourceConfig, functions: Sequence[FunctionSpec]) -> ResourceConfig:
    """The configuration of an endpoint whose functions have settings of their own.

    An only function's settings are the endpoint's. Of several, the endpoint takes what is a property of its processes
    or its queue where they agree; limits and retries stay each function's own (`FunctionSpec.settings`).
    """
    if len({function.id for function in functions}) == 1:
        return functions[0].settings(config)
    own = [function.settings(config) for function in functions]
    agreed = {name: getattr(own[0], name) for name in SHARED if len({getattr(one, name) for one in own}) == 1}
    return dataclasses.replace(config, **agreed)


def setting_problems(project: Project) -> tuple[Problem, ...]:
    """Settings that functions ask for and do not get, because others on their endpoint ask for something else."""
    return tuple(
        Problem(
            file=function.file,
            line=function.line,
            reason=f"{function.name}: {name}={value!r} has no effect, because {resource.name} has other functions "
            f"without it: they share its workers. Give all of them {name}=, or {function.name} a resource of its own",
            severity="warning",
        )
        for resource in project.resources
        for function in resource.functions
        for name, value in function.overrides
        if name in SHARED and value != getattr(resource.config, name)
    )


def name_all(resources: Sequence[ResourceSpec]) -> tuple[tuple[ResourceSpec, ...], list[Problem]]:
    """Give every resource its name: the file's, with the configuration's behind it where a file has several.

    Where two would get one name, the file spelled exactly like it keeps it and the others get a short hash of their
    place behind theirs; the hash depends on nothing else, so a third one changes neither.
    """
    claims = _claims(resources)
    named = [
        dataclasses.replace(resource, name=name if len(members) == 1 else _apart(name, resource, members))
        for name, members in claims.items()
        for resource in members
    ]
    named.sort(key=lambda resource: (resource.file, resource.line or 0, resource.name))
    return tuple(named), _clashes(claims)


def name_clashes(resources: Sequence[ResourceSpec]) -> list[Problem]:
    """Names that several resources would have, as `name_all` tells them."""
    return _clashes(_claims(resources))


def _claims(resources: Sequence[ResourceSpec]) -> dict[EndpointName, list[ResourceSpec]]:
    """The name each resource would have if it were alone with it."""
    per_file = Counter(resource.file for resource in resources)
    claims: dict[EndpointName, list[ResourceSpec]] = defaultdict(list)
    for resource in resources:
        configured = resource.config.name or resource.variable
        claims[resource_name(resource.file, configured, alone=per_file[resource.file] == 1)].append(resource)
    return claims


def _clashes(claims: Mapping[EndpointName, list[ResourceSpec]]) -> list[Problem]:
    return [_clash(name, members) for name, members in claims.items() if len(members) > 1]


def _build(config: Config, members: list[Declared], vocabulary: Vocabulary) -> Built | Invalid:
    """The configuration all `members` share."""
    balanced = any(member.function.decorated_by == "route" for member in members)
    if balanced and any(member.function.decorated_by == "endpoint" for member in members):
        reason = "an Endpoint either decorates functions itself or through .get, .post, …: make two of it"
        return Invalid(config.place.file, config.place.line, reason)
    default_name = members[0].function.name if config.variable is None else None
    built = build(config, vocabulary, default_name=default_name, load_balanced=balanced)
    if isinstance(built, Invalid):
        return built
    unresolved = [*built.unresolved, *(name for member in members for name in member.unresolved)]
    return msgspec.structs.replace(built, unresolved=tuple(dict.fromkeys(unresolved)))


def _resource(config: Config, members: list[Declared], built: Built) -> ResourceSpec:
    functions = sorted(
        (_completed(member.function, built.config) for member in members),
        key=lambda function: (function.file, function.line),
    )
    return ResourceSpec(
        name=EndpointName(resource_stem(config.place.file)),
        file=config.place.file,
        variable=config.variable,
        config=settled(built.config, functions),
        functions=tuple(functions),
        unresolved=built.unresolved,
        line=config.place.line,
    )


def _completed(function: FunctionSpec, config: ResourceConfig) -> FunctionSpec:
    """An `Endpoint` takes the packages of its functions itself."""
    if function.decorated_by == "remote":
        return function
    return dataclasses.replace(
        function,
        dependencies=config.dependencies,
        system_dependencies=config.system_dependencies,
        accelerate_downloads=config.accelerate_downloads,
    )


def _refused(invalid: Invalid, members: list[Declared]) -> list[Problem]:
    """One problem per file that loses functions, so that each file's routes can say why."""
    problems: list[Problem] = []
    for file in dict.fromkeys([member.function.file for member in members]):
        if file == invalid.file:
            reason, line = invalid.reason, invalid.line
        else:
            line = next(member.function.line for member in members if member.function.file == file)
            reason = f"its configuration at {invalid.file}:{invalid.line} cannot be made: {invalid.reason}"
        problems.append(_lost(file, line, reason))
    return problems


def _lost(file: str, line: int, reason: str) -> Problem:
    return Problem(file=file, line=line, reason=reason, prefix=prefix_of(file))


def _apart(name: EndpointName, resource: ResourceSpec, members: list[ResourceSpec]) -> EndpointName:
    exact = [member for member in members if member.file == f"{name}.py"]
    if len(exact) == 1 and exact[0] is resource:
        return name
    same_file = sum(member.file == resource.file for member in members) > 1
    place = f"{resource.file}:{resource.variable or resource.line}" if same_file else resource.file
    return EndpointName(f"{name}_{short_hash(place)}")


def _clash(name: str, members: list[ResourceSpec]) -> Problem:
    first, *others = sorted(members, key=lambda member: (member.file, member.line or 0))
    places = dict.fromkeys(f"{member.file}:{member.line}" for member in others)
    same_file = all(member.file == first.file for member in others)
    remedy = "give one of them another name" if same_file else "rename one file"
    return Problem(
        file=first.file,
        line=first.line,
        reason=f"gives the resource name {name}, and so does {' and '.join(places)}. "
        f"Each is served by itself here; {remedy} before a deploy.",
        severity="warning",
    )
