"""The process that imports one file and tells what it declares; the far end of `inspect.py`.

It runs under the import guard: a decorated call ends the import quietly. The file is loaded by location under its
dotted name, with the project root and its own folder at the end of the import path, so that it neither shadows nor is
shadowed.
"""

import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from flashmesh.functions.caller import ImportEnded, importing
from flashmesh.functions.declarations import Declaration, declarations_in
from flashmesh.project.naming import module_of
from flashmesh.project.syntax import Import, ModuleSyntax, parse

_PR_SET_PDEATHSIG = 1
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""What an object's text has of its place in memory: it would make another build of the same sources."""


def main(request: str) -> int:
    """Import the file and write one JSON answer to the descriptor the request names."""
    wanted = json.loads(request)
    os.set_inheritable(wanted["answer_fd"], False)
    _die_with_parent()
    root = Path(wanted["root"])
    packages = next((at for at, entry in enumerate(sys.path) if entry.endswith("-packages")), len(sys.path))
    sys.path[packages:packages] = wanted["site_dirs"]
    sys.path += dict.fromkeys([str(root), str((root / wanted["file"]).parent)])
    answer = _answer(root, wanted["file"])
    with os.fdopen(wanted["answer_fd"], "w") as out:
        json.dump(answer, out, default=repr)
    sys.stdout.flush()
    os._exit(0)  # threads the user's module started must not keep it


def _answer(root: Path, file: str) -> dict[str, Any]:
    try:
        with importing():
            module = load(root, file)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # the user's module may raise anything, SystemExit too
        return {"failure": _failure(root, file, error)}
    owners = _Owners(root, module, file)
    return {"declared": [_describe(declaration, file, owners) for declaration in declarations_in(vars(module))]}


def load(root: Path, file: str) -> ModuleType:
    """The module of a project file, run under its dotted name. A decorated call ends it early, quietly.

    It does not take the place of a module that has its name already, such as one of the standard library.
    """
    name = module_of(file)
    _make_parents(root, name.split(".")[:-1], file.split("/")[:-1])
    spec = importlib.util.spec_from_file_location(name, root / file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    if name not in sys.modules and name.partition(".")[0] not in sys.stdlib_module_names:
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportEnded:
        pass
    return module


def _make_parents(root: Path, names: list[str], folders: list[str]) -> None:
    """Parent packages, so that relative imports work below folders of any name; none where a name holds a dot."""
    if len(names) != len(folders):
        return
    for depth in range(1, len(names) + 1):
        name, folder = ".".join(names[:depth]), root.joinpath(*folders[:depth])
        if name in sys.modules or names[0] in sys.stdlib_module_names:
            continue
        init = folder / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
        if init.is_file() and spec is not None and spec.loader is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        else:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(folder)]


class _Owners:
    """Finds the file and variable that hold a configuration object: where it is assigned, not where it is imported."""

    def __init__(self, root: Path, module: ModuleType, file: str) -> None:
        self._modules = {file: module}
        for other in list(sys.modules.values()):
            path = getattr(other, "__file__", None)
            if isinstance(path, str) and path.endswith(".py") and Path(path).is_relative_to(root):
                self._modules.setdefault(Path(path).relative_to(root).as_posix(), other)
        self._root = root
        self._imported: dict[str, set[str]] = {}

    def of(self, resource: object, declared_in: str) -> dict[str, str | None]:
        for file, module in self._modules.items():
            for name, value in list(vars(module).items()):
                if value is resource and name not in self._names_imported_by(file):
                    return {"file": file, "variable": name}
        return {"file": declared_in, "variable": None}

    def _names_imported_by(self, file: str) -> set[str]:
        names = self._imported.get(file)
        if names is None:
            syntax = parse((self._root / file).read_bytes())
            names = set()
            if isinstance(syntax, ModuleSyntax):
                for name, bindings in syntax.bindings.items():
                    if isinstance(bindings[-1].value, Import):
                        names.add(name)
                if syntax.stars:
                    names |= vars(self._modules[file]).keys() - syntax.bindings.keys()
            self._imported[file] = names
        return names


def _describe(declaration: Declaration, file: str, owners: _Owners) -> dict[str, Any]:
    described = {
        "id": f"{module_of(file)}.{declaration.qualname}",
        "name": declaration.name,
        "module": module_of(file),
        "file": file,
        "line": declaration.line,
        "qualname": declaration.qualname,
        "kind": declaration.kind,
        "is_async": declaration.is_async,
        "is_generator": declaration.is_generator,
        "http_method": declaration.method,
        "http_path": declaration.path,
        "decorated_by": declaration.decorated_by,
        "local": declaration.local,
        "accelerate_downloads": declaration.accelerate_downloads,
        "dependencies": list(declaration.dependencies),
        "system_dependencies": list(declaration.system_dependencies),
        "doc": inspect.getdoc(declaration.target) if declaration.doc else None,
        "parameters": _parameters(declaration.target),
        "methods": [
            {
                "name": name,
                "line": declaration.line,
                "is_async": body.is_async,
                "is_generator": body.is_generator,
                "doc": inspect.getdoc(getattr(declaration.target, name)),
                "parameters": _parameters(getattr(declaration.target, name), bound=True),
            }
            for name, body in declaration.methods.items()
        ],
    }
    return {
        **described,
        "overrides": sorted(declaration.overrides.items()),
        "config": declaration.resource.to_config().to_dict(),
        "resource": owners.of(declaration.resource, file),
    }


_KINDS: dict[Any, str] = {
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_POSITIONAL: "var_positional",
    inspect.Parameter.VAR_KEYWORD: "var_keyword",
}


def _parameters(target: Any, *, bound: bool = False) -> list[dict[str, str | None]]:
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return []
    if bound and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    empty = inspect.Parameter.empty
    return [
        {
            "name": parameter.name,
            "annotation": None if parameter.annotation is empty else inspect.formatannotation(parameter.annotation),
            "default": None if parameter.default is empty else _ADDRESS.sub("", repr(parameter.default)),
            "kind": _KINDS.get(parameter.kind, "positional"),
        }
        for parameter in parameters
    ]


def _failure(root: Path, file: str, error: BaseException) -> dict[str, Any]:
    """Line, reason and traceback, the latter from the user's code on."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next((at for at, frame in enumerate(frames) if Path(frame.filename) == root / file), len(frames))
    lines = [frame.lineno for frame in frames if Path(frame.filename) == root / file]
    line = error.lineno if isinstance(error, SyntaxError) and not lines else lines[-1] if lines else None
    text = "".join(
        [
            "Traceback (most recent call last):\n",
            *traceback.format_list(frames[own:]),
            *traceback.format_exception_only(error),
        ]
    )
    return {
        "line": line,
        "reason": f"{type(error).__name__}: {error}",
        "traceback": text,
        "missing_module": _missing_module(root, error),
    }


def _missing_module(root: Path, error: BaseException) -> str | None:
    """The module that is not installed; None when a module of the project is what is missing, or nothing is."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    top = error.name.partition(".")[0]
    return None if (root / top).is_dir() or (root / f"{top}.py").is_file() else error.name


def _die_with_parent() -> None:
    """End when the asking process does: its end of our standard input closes. On Linux the kernel sees to it too.

    User code that reads standard input finds nothing there.
    """
    parent = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        while os.read(parent, 4096):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="flash-parent").start()
    if sys.platform == "linux":
        import ctypes  # only this process needs it

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
