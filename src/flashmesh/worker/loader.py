"""Imports the files of one endpoint and says what they serve."""

import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from flashmesh.functions.declarations import Declaration, declarations_in
from flashmesh.functions.errors import ImportFailed
from flashmesh.functions.hooks import worker_start_hooks
from flashmesh.worker.callables import Callables, Served
from flashmesh.worker.imports import ProjectImports
from flashmesh.worker.spec import WorkerSpec
from flashmesh.worker.stubs import CrossImports
from flashmesh.worker.template.program import ImportTooLong

if TYPE_CHECKING:
    from flashmesh.worker.lb.serving import HttpProgram

_OUR_FOLDER: Final = str(Path(__file__).resolve().parent.parent)


class ImportProblem(ImportFailed):
    """A file of the project could not be imported.

    `file` (below the project's root) and `line` say where, `reason` what, in one sentence.
    """

    def __init__(self, reason: str, *, file: str, line: int | None, traceback: str) -> None:
        where = file if line is None else f"{file}:{line}"
        super().__init__(f"{where}: {reason}. Correct the file and save it.")
        self.reason = reason
        self.file = file
        self.line = line
        self.traceback = traceback


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An endpoint's code in this process.

    Attributes:
        modules: by dotted name as written.
        declarations: by function id (a class counts once), of this endpoint only.
        hooks: `@worker_start` functions, in the order of the files.
    """

    modules: dict[str, ModuleType]
    declarations: dict[str, Declaration]
    callables: Callables
    hooks: tuple[Callable[[], Any], ...] = ()
    imports: ProjectImports = field(repr=False)
    http: "HttpProgram | None" = field(default=None, repr=False)
    """The routes it serves, for a load-balanced resource."""


def load(spec: WorkerSpec) -> Loaded:
    """Import the modules of `spec` and collect what it serves.

    The import guard is on: a decorated call at a module's top level ends that module there, and what was defined before
    is served. Raises ImportProblem, naming the line of the user's file.
    """
    crossing = CrossImports(spec)
    imports = ProjectImports(Path(spec.project_root), on_failure=crossing.replace)
    crossing.imports = imports
    place_paths(spec)
    imports.install()
    if spec.resource.is_load_balanced:
        from flashmesh.worker.lb import output  # only where HTTP is served

        output.install()
    modules: dict[str, ModuleType] = {}
    for module in spec.modules:
        try:
            modules[module.module] = imports.load(module.module, Path(module.file))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise problem_of(error, file=module.file, imports=imports) from error
    declarations = served_declarations(spec, modules, imports)
    routes = routes_of(spec, modules, imports)
    resources = [
        *declarations.values(),
        *(one for of_one in routes.values() for of_all in of_one.values() for one in of_all),
    ]
    return Loaded(
        modules=modules,
        declarations=declarations,
        callables=Callables(served_callables(spec, declarations)),
        hooks=tuple(
            hook
            for module in modules.values()
            for hook in worker_start_hooks(own_names(module), tuple(one.resource for one in resources))
        ),
        imports=imports,
        http=http_program(spec, modules, routes, imports) if spec.resource.is_load_balanced else None,
    )


def place_paths(spec: WorkerSpec) -> None:
    """`site_dirs` before site-packages, the rest of `sys_path` after everything, the current directory nowhere."""
    site = {str(Path(sysconfig.get_path(key))) for key in ("purelib", "platlib")}
    entries = [entry for entry in sys.path if entry not in ("", *spec.site_dirs, *spec.sys_path)]
    at = next((index for index, entry in enumerate(entries) if entry in site), len(entries))
    sys.path[:] = [*entries[:at], *spec.site_dirs, *entries[at:], *spec.sys_path]


def served_declarations(
    spec: WorkerSpec, modules: dict[str, ModuleType], imports: ProjectImports
) -> dict[str, Declaration]:
    """The declarations of this endpoint, by function id.

    Syntax told the session which functions there are (`spec.functions`); the import knows better: what shares a
    resource with one of them belongs to it as well, e.g. a function that was decorated by an assignment.
    """
    found = {
        f"{imports.written_name(declaration.module)}.{declaration.qualname}": declaration
        for module in modules.values()
        for declaration in declarations_in(own_names(module))
        if declaration.decorated_by != "route"
    }
    wanted = {name: declaration for name, declaration in found.items() if _is_wanted(name, declaration, spec.functions)}
    resources = {id(declaration.resource) for declaration in wanted.values()}
    return {name: found[name] for name in found if name in wanted or id(found[name].resource) in resources}


Routes = dict[str, dict[str, list[Declaration]]]
"""Declarations with an HTTP route, by module and function id, both as written."""


def routes_of(spec: WorkerSpec, modules: dict[str, ModuleType], imports: ProjectImports) -> Routes:
    """The routes of a load-balanced resource; none for another. A function may have several, at several endpoints."""
    found: Routes = {name: {} for name in modules}
    name = spec.resource.name
    for dotted, module in modules.items() if spec.resource.is_load_balanced else ():
        for declaration in declarations_in(own_names(module)):
            id = f"{imports.written_name(declaration.module)}.{declaration.qualname}"
            ours = name is None or declaration.resource.name in (None, name)
            if declaration.path is not None and ours and id in spec.functions:
                found[dotted].setdefault(id, []).append(declaration)
    return found


def http_program(
    spec: WorkerSpec, modules: dict[str, ModuleType], routes: Routes, imports: ProjectImports
) -> "HttpProgram":
    """The application of these routes. Raises ImportProblem for a signature that cannot be served."""
    from flashmesh.worker.lb.serving import HttpProgram  # FastAPI: half a second that only HTTP endpoints take

    program = HttpProgram(spec)
    files = {module.module: module.file for module in spec.modules}
    for dotted, module in modules.items():
        try:
            program.add(module, dotted, routes[dotted])
        except Exception as error:
            raise problem_of(error, file=files[dotted], imports=imports) from error
    return program


def own_names(module: ModuleType) -> dict[str, Any]:
    """A module's names without the modules it imported: looking into those could load what they make lazily."""
    return {name: value for name, value in vars(module).items() if not isinstance(value, ModuleType)}


def _is_wanted(name: str, declaration: Declaration, functions: list[str]) -> bool:
    if declaration.kind == "class":
        return any(function.rpartition(".")[0] == name for function in functions)
    return name in functions


def served_callables(spec: WorkerSpec, declarations: dict[str, Declaration]) -> list[Served]:
    """One for each function and each public method of a class."""
    served = []
    for name, declaration in declarations.items():
        if declaration.kind == "class":
            served += [Served(f"{name}.{method}", declaration, method) for method in declaration.methods]
        else:
            served.append(Served(name, declaration, None))
    return served


def problem_of(error: BaseException, *, file: str, imports: ProjectImports) -> ImportProblem:
    """What the user is told: file, line, one sentence, and the traceback from their own code on."""
    where, line = file, None
    for frame in traceback.walk_tb(error.__traceback__):
        if imports.owns(frame[0].f_code.co_filename):
            where, line = frame[0].f_code.co_filename, frame[1]
    if isinstance(error, SyntaxError) and imports.owns(error.filename):
        where, line = str(error.filename), error.lineno
    shown = _as_known(where, imports.root)
    return ImportProblem(_reason(error), file=shown, line=line, traceback=user_traceback(error))


def _as_known(file: str, root: Path) -> str:
    """A file of the project as its people name it; another one as it is."""
    for path in (Path(file), Path(file).resolve()):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return file


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of ours and of the import machinery."""
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        part.stack = traceback.StackSummary.from_list(
            [frame for frame in part.stack if not _is_machinery(frame.filename)]
        )
        part = part.__cause__ or part.__context__
    return "".join(told.format())


def _is_machinery(filename: str) -> bool:
    return filename.startswith(("<frozen importlib", _OUR_FOLDER)) or filename.endswith("importlib/__init__.py")


def _reason(error: BaseException) -> str:
    if isinstance(error, ImportTooLong):
        return error.reason
    if isinstance(error, SystemExit):
        return (
            f"the file ends the interpreter (sys.exit({error.code!r})) while it is imported; "
            'put that under `if __name__ == "__main__":`'
        )
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    message = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in sys.modules:
        return f"{type(error).__name__}: {message}; add it to `dependencies=` or install it"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
