"""A decorated function or class as data, from its syntax: parameters, documentation, methods."""

import ast
from collections.abc import Callable, Iterator

import msgspec

from flashmesh.project.model import MethodSpec, ParameterSpec
from flashmesh.project.syntax import Definition

_NOT_METHODS = frozenset({"property", "cached_property", "overload", "setter", "getter", "deleter"})

BasesOf = Callable[[ast.ClassDef], list[ast.ClassDef]]
"""The project's own classes that a class derives from directly."""


class Described(msgspec.Struct, frozen=True):
    """What the definition itself tells, whatever it is decorated with."""

    is_async: bool
    is_generator: bool
    doc: str | None
    parameters: tuple[ParameterSpec, ...]
    methods: tuple[MethodSpec, ...]


def describe(node: Definition, *, bases_of: BasesOf, may_yield: bool = True) -> Described:
    """Read one definition. A class is described by its constructor's parameters and its public methods.

    `may_yield`: False spares looking for a `yield` in a file without that word.
    """
    doc = ast.get_docstring(node)
    if not isinstance(node, ast.ClassDef):
        is_generator = may_yield and _yields(node)
        return Described(isinstance(node, ast.AsyncFunctionDef), is_generator, doc, parameters(node), ())
    functions = _functions_of(node, bases_of)
    constructor = functions.get("__init__")
    methods = tuple(
        _method(function) for name, function in functions.items() if not name.startswith("_") and _is_method(function)
    )
    return Described(False, False, doc, parameters(constructor, bound=True) if constructor else (), methods)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool = False) -> tuple[ParameterSpec, ...]:
    """The parameters in order. `bound`: without the first (`self`)."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    found = [
        ParameterSpec(name=argument.arg, annotation=_text(argument.annotation), default=_text(default))
        for argument, default in zip(positional, [*defaults, *arguments.defaults], strict=True)
    ]
    if bound:
        found = found[1:]
    if arguments.vararg:
        found.append(_variadic(arguments.vararg, "var_positional"))
    found += [
        ParameterSpec(name=argument.arg, annotation=_text(argument.annotation), default=_text(default), kind="keyword")
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        found.append(_variadic(arguments.kwarg, "var_keyword"))
    return tuple(found)


def _variadic(argument: ast.arg, kind: str) -> ParameterSpec:
    annotation = _text(argument.annotation)
    if kind == "var_positional":
        return ParameterSpec(name=argument.arg, annotation=annotation, kind="var_positional")
    return ParameterSpec(name=argument.arg, annotation=annotation, kind="var_keyword")


def _text(node: ast.expr | None) -> str | None:
    match node:
        case None:
            return None
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str() as text) if text.isidentifier():
            return repr(text)
        case _:
            return ast.unparse(node)


def _method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> MethodSpec:
    return MethodSpec(
        name=node.name,
        line=node.lineno,
        is_async=isinstance(node, ast.AsyncFunctionDef),
        is_generator=_yields(node),
        doc=ast.get_docstring(node),
        parameters=parameters(node, bound="staticmethod" not in _decorator_names(node)),
    )


def _functions_of(node: ast.ClassDef, bases_of: BasesOf) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Its functions by name, inherited ones of the project's own classes included; own ones first and last word."""
    found: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
    seen: set[int] = set()
    pending = [node]
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        own = {statement.name: statement for statement in _class_statements(current.body)}
        found |= {name: function for name, function in own.items() if name not in found}
        pending = [*bases_of(current), *pending]
    return found


def _class_statements(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield statement
            case ast.If():
                yield from _class_statements(statement.orelse)
                yield from _class_statements(statement.body)
            case ast.Try():
                for handler in statement.handlers:
                    yield from _class_statements(handler.body)
                yield from _class_statements(statement.body)
            case _:
                continue


def _is_method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return _NOT_METHODS.isdisjoint(_decorator_names(node))


def _decorator_names(node: Definition) -> set[str]:
    """The last part of each decorator's name: `functools.cached_property` -> `cached_property`."""
    names: set[str] = set()
    for decorator in node.decorator_list:
        match decorator:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                names.add(name)
            case _:
                continue
    return names


def _yields(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is a generator: a `yield` in its own body, not in a function inside it."""
    pending: list[ast.AST] = [*node.body]
    while pending:
        current = pending.pop()
        if isinstance(current, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(current, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(current))
    return False
