"""From declared functions to resources: one per configuration object, with a name no other has. Pure."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import EndpointName
from flashmesh.project.configs import Built, build
from flashmesh.project.declarations import Declared
from flashmesh.project.model import FunctionSpec, Problem, ResourceSpec
from flashmesh.project.naming import prefix_of, resource_name, resource_stem, short_hash
from flashmesh.project.values import Config, Invalid
from flashmesh.project.vocabulary import Vocabulary


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
        else:
            resources.append(_resource(config, members, built))
    return resources, problems


def name_all(resources: Sequence[ResourceSpec]) -> tuple[tuple[ResourceSpec, ...], list[Problem]]:
    """Give every resource its name: the file's, with the configuration's behind it where a file has several.

    Where two would get one name, the file spelled exactly like it keeps it and the others get a short hash of their
    place behind theirs; the hash depends on nothing else, so a third one changes neither.
    """
    per_file = Counter(resource.file for resource in resources)
    wanted = [
        resource_name(resource.file, resource.config.name or resource.variable, alone=per_file[resource.file] == 1)
        for resource in resources
    ]
    claims: dict[EndpointName, list[ResourceSpec]] = defaultdict(list)
    for name, resource in zip(wanted, resources, strict=True):
        claims[name].append(resource)
    named = [
        dataclasses.replace(resource, name=name if len(claims[name]) == 1 else _apart(name, resource, claims[name]))
        for name, resource in zip(wanted, resources, strict=True)
    ]
    named.sort(key=lambda resource: (resource.file, resource.line or 0, resource.name))
    clashes = [_clash(name, members) for name, members in claims.items() if len(members) > 1]
    return tuple(named), clashes


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
    return Built(_with_retries(built.config, members), tuple(dict.fromkeys(unresolved)))


def _with_retries(config: ResourceConfig, members: list[Declared]) -> ResourceConfig:
    """`retries` and `retry_on` may stand at the function; the endpoint keeps the most generous."""
    retries = max(config.retries, *(member.retries for member in members))
    retry_on = dict.fromkeys([*config.retry_on, *(name for member in members for name in member.retry_on)])
    return dataclasses.replace(config, retries=retries, retry_on=tuple(retry_on))


def _resource(config: Config, members: list[Declared], built: Built) -> ResourceSpec:
    functions: list[FunctionSpec] = sorted(
        (member.function for member in members), key=lambda function: (function.file, function.line)
    )
    return ResourceSpec(
        name=EndpointName(resource_stem(config.place.file)),
        file=config.place.file,
        variable=config.variable,
        config=built.config,
        functions=tuple(functions),
        unresolved=built.unresolved,
        line=config.place.line,
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
        problems.append(Problem(file=file, line=line, reason=reason, prefix=prefix_of(file)))
    return problems


def _apart(name: EndpointName, resource: ResourceSpec, members: list[ResourceSpec]) -> EndpointName:
    exact = [member for member in members if member.file == f"{name}.py"]
    if len(exact) == 1 and exact[0] is resource:
        return name
    same_file = sum(member.file == resource.file for member in members) > 1
    place = f"{resource.file}:{resource.variable or resource.line}" if same_file else resource.file
    return EndpointName(f"{name}_{short_hash(place)}")


def _clash(name: str, members: list[ResourceSpec]) -> Problem:
    places = " and ".join(dict.fromkeys(f"{member.file}:{member.line}" for member in members))
    return Problem(
        file=members[0].file,
        line=members[0].line,
        reason=f"{places} give one resource name, {name}. Both are served here; rename one file before a deploy.",
        severity="warning",
    )
