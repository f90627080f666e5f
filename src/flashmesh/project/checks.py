"""What stands against building a project, and what its author should know before it is deployed. Pure, but for sources.

`flash run` serves many of these with a warning; a build refuses them, because nobody watches what it makes.
"""

import ast
import dataclasses
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Final

from flashmesh.project.closure import Closures
from flashmesh.project.model import FunctionSpec, Problem, Project, ResourceSpec
from flashmesh.project.resources import name_clashes
from flashmesh.project.routes import declared_route_problems

Read = Callable[[str], bytes]
"""The bytes of a file of the project. Raises OSError."""

_SECRET_NAMES: Final = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)


def errors(project: Project, closures: Closures) -> list[Problem]:
    """Everything for which the project cannot be built, in the order of the files."""
    clashes = name_clashes(project.resources)
    found = [problem for problem in project.problems if problem.severity == "error" and problem not in clashes]
    found += [dataclasses.replace(problem, severity="error") for problem in clashes]
    found += _declared_twice(project)
    found += declared_route_problems(project)
    found += _unresolved(project)
    for file, syntax in closures.unreadable(_used(project, closures)).items():
        found.append(Problem(file=file, line=syntax.line, reason=f"a function imports it, and {syntax.reason}"))
    return sorted(dict.fromkeys(found), key=lambda problem: (problem.file, problem.line or 0))


def warnings(project: Project, closures: Closures, *, packed: Container[str], read: Read) -> list[Problem]:
    """What works, and probably not as meant.

    Args:
        packed: the paths that the artifact will hold.
    """
    clashes = name_clashes(project.resources)
    found = [problem for problem in project.problems if problem.severity == "warning" and problem not in clashes]
    found += _ambiguous_names(project)
    found += _balanced_calls(project, closures, read)
    found += _missing_packages(project, closures)
    found += _not_packed(project, closures, packed)
    found += _mixed_python(project)
    found += _secrets_in_code(project, read)
    return sorted(dict.fromkeys(found), key=lambda problem: (problem.file, problem.line or 0))


def _warning(file: str, line: int | None, reason: str) -> Problem:
    return Problem(file=file, line=line, reason=reason, severity="warning")


def _declared_twice(project: Project) -> Iterator[Problem]:
    """Two configuration objects with one declared name. An `Endpoint` that took its function's name declared none."""
    groups: dict[str, list[ResourceSpec]] = defaultdict(list)
    for resource in project.resources:
        name = resource.config.name
        took_it = (
            resource.config.resource_type == "Endpoint"
            and resource.variable is None
            and [one.name for one in resource.functions] == [name]
        )
        if name and not took_it:
            groups[name].append(resource)
    for name, members in groups.items():
        first, *others = members
        if others:
            places = " and ".join(f"{one.file}:{one.line}" for one in others)
            reason = f'the name "{name}" is declared here and at {places}. Names are unique in a project: change one'
            yield Problem(file=first.file, line=first.line, reason=reason)


def _unresolved(project: Project) -> Iterator[Problem]:
    for resource in project.resources:
        if resource.unresolved:
            any_of_them = "*" in resource.unresolved
            what = "its settings" if any_of_them else ", ".join(resource.unresolved)
            remedy = "Write them out" if any_of_them else "Write the values themselves, put them into flash.toml"
            reason = (
                f"{resource.name}: {what} can only be told by importing the file, and that needs packages which are "
                f"not installed here. {remedy}, or install the packages"
            )
            yield Problem(file=resource.file, line=resource.line, reason=reason)


def _ambiguous_names(project: Project) -> Iterator[Problem]:
    groups: dict[str, list[FunctionSpec]] = defaultdict(list)
    for function in {function.id: function for function in project.functions}.values():
        groups[function.name].append(function)
    for name, members in groups.items():
        if len(members) > 1:
            first = members[0]
            ids = " and ".join(sorted(member.id for member in members))
            yield _warning(first.file, first.line, f"{name} is the name of {ids}: by that name alone neither is called")


def _balanced_calls(project: Project, closures: Closures, read: Read) -> Iterator[Problem]:
    """HTTP routes that call HTTP routes of another resource through `@remote`."""
    balanced = [resource for resource in project.resources if resource.is_load_balanced]
    for resource in balanced:
        reached = closures.of(resource)
        callees = {
            function.name: function
            for other in balanced
            if other is not resource
            for function in other.functions
            if function.decorated_by == "remote" and function.file in reached
        }
        for function in resource.functions if callees else ():
            for name in sorted(_names_in(function, read) & callees.keys()):
                yield _warning(
                    function.file,
                    function.line,
                    f"{function.name} serves HTTP and calls {name} of {callees[name].file}, which serves HTTP too: the "
                    "call takes the way over HTTP. Between your own functions a queue-based resource is faster",
                )


def _names_in(function: FunctionSpec, read: Read) -> set[str]:
    """Every name the body uses, bare or as an attribute."""
    try:
        tree = ast.parse(read(function.file))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == function.name:
            names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            return names | {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
    return set()


def _missing_packages(project: Project, closures: Closures) -> Iterator[Problem]:
    """`from folder import name`, where the folder is no package and holds no such module: it fails at the import."""
    for missing in closures.unpackaged(_used(project, closures)):
        reason = (
            f"it imports {missing.name} from {missing.folder}, a folder without an __init__.py and without "
            f"{missing.name}.py: that import fails. Add {missing.folder}/__init__.py"
        )
        yield _warning(missing.importer, None, reason)


def _used(project: Project, closures: Closures) -> set[str]:
    return {file for resource in project.resources for file in closures.of(resource)}


def _not_packed(project: Project, closures: Closures, packed: Container[str]) -> Iterator[Problem]:
    for file in sorted(_used(project, closures)):
        if file not in packed:
            reason = "a function imports it, and it is not packed: it is ignored, excluded or a test. "
            yield _warning(file, None, f"{reason}Take it back with a line !{file} in .flashignore, or rename it")


def _mixed_python(project: Project) -> Iterator[Problem]:
    versions: dict[str, list[ResourceSpec]] = defaultdict(list)
    for resource in project.resources:
        if resource.config.python_version:
            versions[resource.config.python_version].append(resource)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if len(versions) > 1:
        named = " and ".join(f"{members[0].name} {version}" for version, members in sorted(versions.items()))
        first = next(iter(versions.values()))[0]
        reason = (
            f"resources ask for different versions of Python ({named}): values pickled by one may not load in another"
        )
        yield _warning(first.file, first.line, reason)
    elif versions and here not in versions:
        ((version, members),) = versions.items()
        reason = (
            f"python_version={version!r}, and this build was scanned with {here}, which is what `local` endpoints run"
        )
        yield _warning(members[0].file, members[0].line, reason)


def _secrets_in_code(project: Project, read: Read) -> Iterator[Problem]:
    """Values of variables that sound secret and stand in a file that is packed."""
    for resource in project.resources:
        values = {name: value for name, value in resource.config.worker_env.items() if _SECRET_NAMES.search(name)}
        found = sorted(name for name, value in values.items() if len(value) >= 4 and _holds(resource.file, value, read))
        if found:
            reason = (
                f"the value of {', '.join(found)} stands in this file, which is packed. "
                "Take it from os.environ and give it by --env-file"
            )
            yield _warning(resource.file, resource.line, reason)


def _holds(file: str, value: str, read: Read) -> bool:
    try:
        return value.encode() in read(file)
    except OSError:
        return False


def sentences(problems: Iterable[Problem]) -> list[str]:
    """`file:line: reason`, a line each."""
    return [
        f"{problem.file if problem.line is None else f'{problem.file}:{problem.line}'}: {problem.reason}"
        for problem in problems
    ]
