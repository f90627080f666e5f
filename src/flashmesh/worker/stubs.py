"""Cross imports: a project module of another resource whose packages are not installed here.

A CPU endpoint imports the GPU file whose first line is `import torch`: the first thing every application does. What it
wants of that file are its functions, to call them; those are known from the manifest. So the module is given its
functions as stubs (handles that can only be called remotely), and every other name raises the error the import ended
with.
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flashmesh.functions.classes import class_handle
from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.declarations import Body, Declaration
from flashmesh.functions.errors import EndpointUnresolved
from flashmesh.functions.handles import Callee, handle_of
from flashmesh.project.model import Manifest
from flashmesh.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from flashmesh.worker.imports import ProjectImports

log = logging.getLogger(__name__)

_STUB: Final = "__flash_stub__"


class CrossImports:
    """Decides whether a failed import of a project module becomes a module of stubs."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._endpoint = spec.endpoint
        self._own = {module.module for module in spec.modules}
        self._manifest = Path(spec.manifest)
        self.imports: ProjectImports

    def replace(self, module: ModuleType, error: ImportError) -> bool:
        """Make `module` usable if it belongs to another resource and only lacks what that one has. False: it failed."""
        written = self.imports.written_name(module.__name__)
        if written in self._own or not self._is_excusable(error):
            return False
        entries = list(functions_of(written, read_manifest(self._manifest), besides=self._endpoint))
        if not entries:
            return False
        fill(module, written, entries, error)
        log.debug(
            "module of another resource imported as stubs",
            extra={"action": "stub_module", "stub": written, "missing": error.name},
        )
        return True

    def _is_excusable(self, error: ImportError) -> bool:
        """A missing third-party package; or two functions files that import each other's functions by name."""
        name = error.name or ""
        if isinstance(error, ModuleNotFoundError):
            top = name.partition(".")[0]
            return bool(top) and top not in sys.stdlib_module_names and not self.imports.has_module(top)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        return bool(getattr(spec, "_initializing", False)) and self.imports.has_module(self.imports.written_name(name))


def read_manifest(path: Path) -> Manifest:
    """The session's manifest; an empty one when it cannot be read."""
    try:
        manifest: Manifest = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return {}
    return manifest


def functions_of(module: str, manifest: Manifest, *, besides: str) -> list[tuple[str, Mapping[str, Any], Any]]:
    """(resource, resource entry, function entry) of every function of `module` that another resource serves."""
    return [
        (resource, entry, function)
        for resource, entry in manifest.get("resources", {}).items()
        for function in entry.get("functions", ())
        if resource != besides and function.get("module") == module
    ]


def fill(
    module: ModuleType, written: str, entries: list[tuple[str, Mapping[str, Any], Any]], error: ImportError
) -> None:
    """Replace what the failed import left by stubs; any other name raises `error`."""
    kept = {name: value for name, value in vars(module).items() if name.startswith("__") and name.endswith("__")}
    vars(module).clear()
    vars(module).update(kept)
    names = []
    for resource, entry, function in entries:
        if "." in function["name"]:
            continue
        setattr(module, function["name"], handle_for(stub_declaration(module.__name__, resource, entry, function)))
        names.append(function["name"])
    module.__dict__["__all__"] = names

    def missing(name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"module {written!r} has no attribute {name!r}")
        raise error

    module.__dict__["__getattr__"] = missing


def stub_declaration(module: str, resource: str, entry: Mapping[str, Any], function: Mapping[str, Any]) -> Declaration:
    """A declaration as the manifest tells it, whose body is not here."""
    target = _stand_in(module, function)
    return Declaration(
        target,
        ManifestResource(resource, entry),
        decorated_by="remote",
        method=function.get("http_method"),
        path=function.get("http_path"),
    )


def handle_for(declaration: Declaration) -> Any:
    """What stands in the module under the function's name: as its decorator would have made it."""
    if declaration.kind == "class":
        return class_handle(declaration)
    return handle_of(Callee(declaration, Body(declaration.name, declaration.target)), declaration.target)


def is_stub(declaration: Declaration) -> bool:
    """Whether the function's code is not in this process."""
    return hasattr(declaration.target, _STUB)


class ManifestResource:
    """A resource of which only the manifest is known."""

    def __init__(self, name: str, entry: Mapping[str, Any]) -> None:
        self.name = name
        self._entry = entry
        self.is_load_balanced = bool(entry.get("is_load_balanced"))

    def to_config(self) -> ResourceConfig:
        config = {"resource_type": self._entry.get("resource_type", "Endpoint"), **self._entry.get("config", {})}
        known = {name: value for name, value in config.items() if name in ResourceConfig.__dataclass_fields__}
        known["env"] = {}  # the manifest holds only their names
        known["is_load_balanced"] = self.is_load_balanced
        return ResourceConfig.from_dict(known)


def _stand_in(module: str, entry: Mapping[str, Any]) -> Any:
    """A function or class of the right kind that raises when it is run here."""
    name = entry["name"]
    if entry.get("is_class"):
        methods = {method: _stand_in_function(module, method, {}) for method in entry.get("class_methods") or ()}
        return type(name, (), {"__module__": module, "__qualname__": name, _STUB: True, **methods})
    return _stand_in_function(module, name, entry)


def _stand_in_function(module: str, name: str, entry: Mapping[str, Any]) -> Any:
    def absent(*args: Any, **kwargs: Any) -> Any:
        raise EndpointUnresolved(
            f"The code of {module}.{name} is not in this process: its module needs packages that are absent here. "
            "Call it as `await f(…)` or `f.call(…)`; `flash status` shows whether its endpoint is up."
        )

    async def absent_async(*args: Any, **kwargs: Any) -> Any:
        return absent()

    def absent_items(*args: Any, **kwargs: Any) -> Any:
        yield absent()

    async def absent_async_items(*args: Any, **kwargs: Any) -> Any:
        yield absent()

    kinds = {(False, False): absent, (True, False): absent_async, (False, True): absent_items}
    chosen: Any = kinds.get((bool(entry.get("is_async")), bool(entry.get("is_generator"))), absent_async_items)
    chosen.__module__, chosen.__name__, chosen.__qualname__ = module, name, name
    setattr(chosen, _STUB, True)
    return chosen
