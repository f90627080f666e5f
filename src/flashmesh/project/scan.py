"""The first pass over a project: what its files declare, from their syntax alone.

A file that declares nothing is never executed, and a broken one keeps its place: the problem that names it carries the
URL prefix of its routes.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flashmesh.project.appname import app_name
from flashmesh.project.declarations import Declared, NeedsImport, declarations
from flashmesh.project.evaluate import Evaluator, environment
from flashmesh.project.files import find_files
from flashmesh.project.model import Problem, Project
from flashmesh.project.modules import ModuleFinder
from flashmesh.project.naming import prefix_of
from flashmesh.project.requirements import project_requirements
from flashmesh.project.resources import name_all, resources_of
from flashmesh.project.settings import read_settings
from flashmesh.project.sources import Sources
from flashmesh.project.syntax import SyntaxProblem
from flashmesh.project.vocabulary import PublicNames, Vocabulary


def scan(
    root: Path,
    *,
    previous: Project | None = None,
    changed: Collection[Path] | None = None,
    vocabulary: Vocabulary | None = None,
    environ: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
) -> Project:
    """Find every resource and function below `root`. Runs nothing of the user's; never raises for what a file holds.

    Args:
        previous: the last scan; files whose time and size did not change are not read again.
        changed: files that did change, whatever their times say (two writes within one tick of the clock).
        vocabulary: our public names; others only in tests.
        environ: what `os.environ` will hold in workers, for settings that are read from it; default: this process's.
        exclude: patterns of files that are not there, as in a `.gitignore`.
    """
    root = root.absolute()
    found = find_files(root, exclude)
    remembered = previous.syntax if previous is not None and previous.root == root else {}
    sources = Sources(root, found, remembered=remembered, changed=_relative(root, changed or ()))
    vocabulary = vocabulary or PublicNames()
    evaluator = Evaluator(
        finder=ModuleFinder(root, [file.path for file in found]),
        syntax_of=sources.syntax_of,
        vocabulary=vocabulary,
        environ=environment() if environ is None else environ,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user's own, such as an invalid escape: Python shows them at the import
        declared, problems, needs_import = _read_all([file.path for file in found], sources, evaluator)
        resources, refused = resources_of(declared, vocabulary)
    named, clashes = name_all(resources)
    return Project(
        root=root,
        name=app_name(root),
        resources=named,
        problems=tuple(dict.fromkeys([*problems, *refused, *clashes])),
        files=tuple(file.path for file in found),
        requirements=project_requirements(root),
        written=read_settings(root),
        needs_import=tuple(needs_import),
        syntax=dict(sources.current),
    )


def _read_all(
    files: list[str], sources: Sources, evaluator: Evaluator
) -> tuple[list[Declared], list[Problem], list[str]]:
    declared: list[Declared] = []
    problems: list[Problem] = []
    needs_import: dict[str, None] = {}
    for file in files:
        for finding in _read_file(file, sources, evaluator):
            match finding:
                case Declared():
                    declared.append(finding)
                case Problem():
                    problems.append(finding)
                case NeedsImport():
                    needs_import[file] = None
    return declared, problems, list(needs_import)


def _read_file(file: str, sources: Sources, evaluator: Evaluator) -> list[Declared | Problem | NeedsImport]:
    try:
        source = sources.read(file)
    except OSError as error:
        return [Problem(file=file, line=None, reason=f"it cannot be read: {error.strerror}")]
    if not source.may_declare:
        return []
    syntax = sources.syntax_of(file)
    if isinstance(syntax, SyntaxProblem):
        if not source.mentions_us:
            return []
        return [Problem(file=file, line=syntax.line, reason=syntax.reason, prefix=prefix_of(file))]
    try:
        return declarations(file, syntax, evaluator)
    except RecursionError:
        return [Problem(file=file, line=None, reason="it is nested too deeply to be read", prefix=prefix_of(file))]


def _relative(root: Path, paths: Collection[Path]) -> set[str]:
    return {path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root)}
