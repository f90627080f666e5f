"""A function that has no file: the text of a module that holds it and what it uses.

Functions of a notebook, a REPL, `python -c` or stdin live in `__main__` without a file that a worker could import.
Their source, and that of the functions, classes, imports and constants of `__main__` they use, is collected into one
module. What has no source (Python before 3.13 keeps none for stdin) or is no constant (an array) travels pickled.

The text is signed by whoever sends it and executed only by workers of the same session (see registration.py).
"""

import ast
import base64
import builtins
import inspect
import linecache
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flashmesh.dev.script.main_module import NOTEBOOK
from flashmesh.functions.errors import NotEncodable
from flashmesh.functions.shipped import declare_again

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
_MAX_LITERAL_CHARS = 10_000
_OUR_IMPORTS = "from flashmesh.functions.shipped import declare_again as _declare_again"
_OURS = frozenset({"flashmesh", "runpod_flash"})

Unwrap = Callable[[Any], Any]
"""The user's own function or class behind a decorated one; anything else as it is."""


def collect(*targets: Any, unwrap: Unwrap = lambda value: value) -> str:
    """A module's text that defines `targets` (functions and classes of `__main__`) under their own names.

    What we decorated is decorated in it again, in a plain form: workers serve declarations only, and one that belongs
    to another endpoint is called there. How it was declared, the session knows.

    Raises:
        NotEncodable: something it uses can neither be written down nor pickled; the message names it.
    """
    return _Collection(unwrap).module_of(targets)


class _Collection:
    def __init__(self, unwrap: Unwrap) -> None:
        self._unwrap = unwrap
        self._futures: dict[str, None] = {}
        self._imports: dict[str, None] = {}
        self._constants: list[str] = []
        self._definitions: list[str] = []
        self._seen: set[str] = set()

    def module_of(self, targets: Sequence[Any]) -> str:
        for target in targets:
            if target.__name__ not in self._seen:
                self._seen.add(target.__name__)
                self._declare(target.__name__, target)
        future = [f"from __future__ import {', '.join(self._futures)}"] if self._futures else []
        parts = ["\n".join([*future, *self._imports]), "\n".join(self._constants), *self._definitions]
        return "\n\n\n".join(part for part in parts if part) + "\n"

    def _declare(self, name: str, target: Any) -> None:
        self._add_definition(name, inspect.unwrap(target))
        self._imports[_OUR_IMPORTS] = None
        self._definitions.append(f"{name} = _declare_again({name}, {name!r}, __name__)")

    def _add_definition(self, name: str, target: Any) -> None:
        """What it uses is written before it: defaults and base classes are evaluated when it is defined."""
        found = _definition(target)
        if found is None or _closes_over(target):
            self._definitions.append(self._pickled(name, target))
            return
        node, text = found
        for used in _names_used(node):
            self._add_name(used, _globals_of(target), name)
        flags = getattr(_code_of(target), "co_flags", 0)
        if flags & 0x1000000:  # CO_FUTURE_ANNOTATIONS
            self._futures["annotations"] = None
        self._definitions.append(text if node.name == name else f"{text}\n\n{name} = {node.name}")

    def _add_name(self, name: str, namespace: dict[str, Any], user: str) -> None:
        if name in self._seen or name not in namespace:
            return
        self._seen.add(name)
        value = self._unwrap(namespace[name])
        if value is not namespace[name] and value.__module__ == "__main__":
            self._declare(name, value)
        elif isinstance(value, types.ModuleType):
            self._imports[_import_of(value, name)] = None
        elif _importable(value):
            source, attribute = value.__module__, value.__qualname__
            if source != "builtins" or attribute != name:
                alias = "" if attribute == name else f" as {name}"
                self._imports[f"from {source} import {attribute}{alias}"] = None
        elif isinstance(inspect.unwrap(value), types.FunctionType | type):
            self._add_definition(name, inspect.unwrap(value))  # decorated: its decorators are part of its source
        elif (written := _literal(value)) is not None:
            self._constants.append(f"{name} = {written}")
        else:
            self._constants.append(self._pickled(name, value, user=user))

    def _pickled(self, name: str, value: Any, *, user: str = "") -> str:
        try:
            data = base64.b64encode(_by_value(value, self._unwrap)).decode("ascii")
        except Exception as error:
            raise _not_sendable(name, value, user, error) from error
        self._imports["import base64 as _base64, pickle as _pickle"] = None
        return f"{name} = _pickle.loads(_base64.b64decode({data!r}))"


def _by_value(value: Any, unwrap: Unwrap) -> bytes:
    """Pickled, functions and classes of `__main__` with what they use; decorated ones are declared again over there."""
    import io

    import cloudpickle  # only for what has no source

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # it has no types
        def reducer_override(self, obj: Any) -> Any:
            target = unwrap(obj)
            if target is not obj:
                return declare_again, (target, target.__name__, NOTEBOOK)
            return super().reducer_override(obj)

    out = io.BytesIO()
    Pickler(out).dump(value)
    return out.getvalue()


def _not_sendable(name: str, value: Any, user: str, error: Exception) -> NotEncodable:
    used = f" that `{user}` uses" if user else ""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return NotEncodable(
        f"`{name}`{used} is a {kind} and cannot be sent to a worker ({error}). Make it inside the function, or pass it "
        "as an argument."
    )


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definition(target: Any) -> tuple[_Definition, str] | None:
    """The statement that defined `target`, our decorators taken off, and its text. None: no source is kept."""
    code = _code_of(target)
    if code is None:
        return None
    source = _text_of(code.co_filename)
    if source is None:
        return None
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    found = _statement(tree, target.__name__, code.co_firstlineno, isinstance(target, type))
    if found is None:
        return None
    namespace = _globals_of(target)
    found.decorator_list = [decorator for decorator in found.decorator_list if not _is_ours(decorator, namespace)]
    kept = [f"@{ast.get_source_segment(source, decorator)}" for decorator in found.decorator_list]
    body = textwrap.dedent("\n".join(source.splitlines()[found.lineno - 1 : found.end_lineno]))
    return found, "\n".join([*kept, body])


def _is_ours(decorator: ast.expr, namespace: dict[str, Any]) -> bool:
    """Whether a decorator starts at one of our names: `@remote(…)`, `@flash.remote(…)`, `@endpoint`, `@api.get(…)`."""
    root: ast.expr = decorator
    while isinstance(root, ast.Call | ast.Attribute):
        root = root.func if isinstance(root, ast.Call) else root.value
    value = namespace.get(root.id) if isinstance(root, ast.Name) else None
    if isinstance(value, types.ModuleType):
        source = value.__name__
    else:
        source = getattr(value, "__module__", None) or type(value).__module__
    return source.partition(".")[0] in _OURS


def _statement(tree: ast.Module, name: str, line: int, is_class: bool) -> _Definition | None:
    """A function is the one that starts at `line`; a class the last one of that name that spans it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and is_class and node.name == name:
            if node.lineno <= line <= (node.end_lineno or node.lineno):
                return node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_class and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= node.lineno:
                return node
    return None


def _text_of(filename: str) -> str | None:
    lines = linecache.getlines(filename)
    if lines:
        return "".join(lines)
    if filename == "<string>":
        return _command_text()
    return None


def _command_text() -> str | None:
    """The program of `python -c PROGRAM`."""
    arguments = sys.orig_argv[1:]
    for index, argument in enumerate(arguments):
        if argument == "-c" and index + 1 < len(arguments):
            return arguments[index + 1]
        if not argument.startswith("-"):
            return None
    return None


def _code_of(target: Any) -> types.CodeType | None:
    if isinstance(target, types.FunctionType):
        return target.__code__
    for value in vars(target).values() if isinstance(target, type) else ():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(function, types.FunctionType) and function.__module__ == target.__module__:
            return function.__code__
    return None


def _globals_of(target: Any) -> dict[str, Any]:
    if isinstance(target, types.FunctionType):
        return target.__globals__
    module = sys.modules.get(target.__module__)
    return vars(module) if module is not None else {}


def _closes_over(target: Any) -> bool:
    """A closure's cells are not in its source. (`__class__`, the cell behind `super()`, is.)"""
    code = _code_of(target)
    return code is not None and isinstance(target, types.FunctionType) and bool(code.co_freevars)


def _names_used(node: _Definition) -> Iterator[str]:
    """Every name in it, in order; which of them are global the caller sees."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Constant) and isinstance(child.value, str) and child.value.isidentifier():
            yield child.value  # an annotation in quotes; harmless when it is any other word


def _import_of(module: types.ModuleType, name: str) -> str:
    full = module.__name__
    return f"import {full}" if full == name else f"import {full} as {name}"


def _importable(value: Any) -> bool:
    """Whether `from module import qualname` gives this very object in another process."""
    source, attribute = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(source, str) or not isinstance(attribute, str) or source == "__main__" or "." in attribute:
        return False
    module = sys.modules.get(source)
    return module is not None and getattr(module, attribute, None) is value


def _literal(value: Any) -> str | None:
    """Its source text when it is a constant made of plain values, else None."""
    if not _is_plain(value):
        return None
    text = repr(value)
    if len(text) > _MAX_LITERAL_CHARS:
        return None
    try:
        same = ast.literal_eval(text) == value
    except (ValueError, SyntaxError, RecursionError):
        return None
    return text if same else None


def _is_plain(value: Any, depth: int = 0) -> bool:
    if type(value) in _PLAIN:
        return True
    if depth > 20:
        return False
    if type(value) in (tuple, list, set):
        return all(_is_plain(item, depth + 1) for item in value)
    if type(value) is dict:
        return all(_is_plain(key, depth + 1) and _is_plain(item, depth + 1) for key, item in value.items())
    return False


def has_file(function: Any) -> bool:
    """Whether the file that a function or class was read from exists, so that a worker can import it."""
    code = _code_of(function)
    if code is None:
        module = sys.modules.get(getattr(function, "__module__", ""))
        return getattr(module, "__file__", None) is not None
    from pathlib import Path

    name = code.co_filename
    return not name.startswith("<") and Path(name).is_file() and not _is_cell(name, function)


def _is_cell(filename: str, function: Any) -> bool:
    """IPython's kernel compiles cells under the names of temporary files, some of which exist for its debugger."""
    if "ipykernel_" in filename:
        return True
    main = sys.modules.get("__main__")
    return (
        function.__module__ == "__main__"
        and getattr(main, "__file__", None) is None
        and hasattr(builtins, "__IPYTHON__")
    )
