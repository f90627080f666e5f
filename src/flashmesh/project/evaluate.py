"""What a name or expression of a project file stands for, followed across files. Nothing of the user's is run.

A name means its last binding before the place that uses it; an imported name, the last one of the other file.
"""

import ast
import builtins
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from flashmesh.project import literals
from flashmesh.project.modules import ModuleFinder
from flashmesh.project.syntax import PACKAGES, Binding, Condition, Import, ModuleSyntax, SyntaxProblem
from flashmesh.project.values import (
    Config,
    ConfigPlace,
    Decorator,
    Defined,
    Invalid,
    Known,
    Method,
    Outside,
    Package,
    ProjectModule,
    Public,
    RouteDecorator,
    Unknown,
    Value,
)
from flashmesh.project.vocabulary import Vocabulary

ROUTE_VERBS = frozenset({"get", "post", "put", "delete", "patch", "head", "options"})
END = sys.maxsize
"""The place after everything in a file."""


class Evaluator:
    """Evaluates expressions of one project's files; remembers what it found.

    Args:
        syntax_of: the syntax of a file of the project, or why it has none.
        environ: what `os.environ` holds where the functions will run.
    """

    def __init__(
        self,
        *,
        finder: ModuleFinder,
        syntax_of: Callable[[str], ModuleSyntax | SyntaxProblem],
        vocabulary: Vocabulary,
        environ: Mapping[str, str],
    ) -> None:
        self._finder = finder
        self._syntax_of = syntax_of
        self._vocabulary = vocabulary
        self._environ = environ
        self._bound: dict[tuple[str, str, int], Value] = {}
        self._configs: dict[ConfigPlace, Config] = {}

    def evaluate(self, file: str, node: ast.expr, *, at: int = END) -> Value:
        """What `node`, standing at place `at` of `file`, stands for."""
        try:
            return self._evaluate(file, node, at, None)
        except RecursionError:
            return Unknown()

    def holds(self, file: str, conditions: tuple[Condition, ...], *, at: int) -> bool | None:
        """Whether a statement under `conditions` is run; None when syntax cannot tell."""
        verdict: bool | None = True
        for condition in conditions:
            value = self.evaluate(file, condition.test, at=at)
            if not isinstance(value, Known):
                verdict = None
            elif bool(value.value) is not condition.branch:
                return False
        return verdict

    def lookup(self, file: str, name: str, *, at: int = END) -> Value:
        """The value of a module-level name of `file` at place `at`."""
        syntax = self._syntax_of(file)
        if isinstance(syntax, SyntaxProblem):
            return Invalid(file, syntax.line or 1, syntax.reason)
        for binding in reversed(syntax.bindings.get(name, ())):
            if binding.at < at and self.holds(file, binding.conditions, at=binding.at) is not False:
                return self._value_of(file, syntax, name, binding)
        for star in syntax.stars:
            value = self._imported(file, Import(star.module, star.level, name))
            if isinstance(value, Public) and self._vocabulary.kind(value.name) == "unknown":
                continue
            if not isinstance(value, (Unknown, Outside)):
                return value
        return Unknown()

    def _value_of(self, file: str, syntax: ModuleSyntax, name: str, binding: Binding) -> Value:
        key = (file, name, binding.at)
        if key not in self._bound:
            self._bound[key] = Unknown()  # what a name that needs itself (an import cycle) stands for
            self._bound[key] = self._bind(file, syntax, name, binding)
        return self._bound[key]

    def _bind(self, file: str, syntax: ModuleSyntax, name: str, binding: Binding) -> Value:
        match binding.value:
            case Import() as imported:
                return self._imported(file, imported)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() as node:
                return Defined(file, node)
            case expression:
                value = self._evaluate(file, expression, binding.at, name)
        if binding.index is not None:
            try:
                return Known(literals.subscript(value.value, binding.index)) if isinstance(value, Known) else Unknown()
            except literals.NotPlain:
                return Unknown()
        return value

    def _imported(self, file: str, imported: Import) -> Value:
        if imported.level == 0 and imported.module.partition(".")[0] in PACKAGES:
            return Package() if imported.name is None else self._public(imported.name)
        module = self._finder.find(imported.module, level=imported.level, importer=file)
        if module is None:
            return Outside(".".join(filter(None, (imported.module, imported.name))))
        if imported.name is None:
            return ProjectModule(module)
        return self._member(module, imported.name)

    def _member(self, module: str, name: str) -> Value:
        """`name` of a project module: what its file binds, else a submodule."""
        if not module.endswith("/"):
            syntax = self._syntax_of(module)
            if isinstance(syntax, SyntaxProblem) or name in syntax.bindings or syntax.stars:
                value = self.lookup(module, name)
                if not isinstance(value, Unknown) or isinstance(syntax, SyntaxProblem) or name in syntax.bindings:
                    return value
        submodule = self._finder.submodule(module, name)
        return ProjectModule(submodule) if submodule else Unknown()

    def _public(self, name: str) -> Value:
        return Package() if self._vocabulary.kind(name) == "unknown" and name in _SUBMODULES else Public(name)

    def _evaluate(self, file: str, node: ast.expr, at: int, variable: str | None) -> Value:
        match node:
            case ast.Constant():
                return Known(node.value)
            case ast.Name(id=name):
                return self._name(file, name, at)
            case ast.Attribute():
                return self._attribute(self._evaluate(file, node.value, at, None), node.attr)
            case ast.Call():
                return self._call(file, node, at, variable)
            case ast.IfExp():
                return self._choice(file, node, at, variable)
            case ast.Await() | ast.Yield() | ast.YieldFrom() | ast.Lambda():
                return Unknown()
            case _:
                try:
                    return Known(self._plain(file, node, at))
                except literals.NotPlain:
                    return Unknown()

    def _name(self, file: str, name: str, at: int) -> Value:
        value = self.lookup(file, name, at=at)
        syntax = self._syntax_of(file)
        if not isinstance(value, Unknown) or isinstance(syntax, SyntaxProblem) or name in syntax.bindings:
            return value
        builtin = getattr(builtins, name, None)
        if isinstance(builtin, type) and issubclass(builtin, BaseException):
            return Known(builtin)
        return Outside(name) if name in literals.CONVERSIONS else value

    def _attribute(self, owner: Value, name: str) -> Value:
        match owner:
            case Package():
                return self._public(name)
            case ProjectModule(path=path):
                return self._member(path, name)
            case Public(name=public):
                return self._ours(public, name)
            case Outside(name="sys") if name in ("platform", "version_info"):
                return Known(sys.platform if name == "platform" else tuple(sys.version_info))
            case Outside(name=dotted):
                return Outside(f"{dotted}.{name}")
            case Config() | Known():
                return Method(owner, name)
            case Invalid():
                return owner
            case Unknown(maybe_ours=True):
                return owner
            case _:
                return Unknown()

    def _ours(self, public: str, name: str) -> Value:
        """`GpuGroup.ANY`, `DataCenter.from_string`: an attribute of one of our own classes."""
        try:
            found = getattr(self._vocabulary.get(public), name)
        except AttributeError:
            return Unknown()
        return Known(found)

    def _choice(self, file: str, node: ast.IfExp, at: int, variable: str | None) -> Value:
        test = self._evaluate(file, node.test, at, None)
        if isinstance(test, Known):
            return self._evaluate(file, node.body if test.value else node.orelse, at, variable)
        either = [self._evaluate(file, branch, at, variable) for branch in (node.body, node.orelse)]
        return Unknown(
            maybe_ours=any(isinstance(value, Config) or value == Unknown(maybe_ours=True) for value in either)
        )

    def _call(self, file: str, node: ast.Call, at: int, variable: str | None) -> Value:
        called = self._evaluate(file, node.func, at, None)
        match called:
            case Public(name=name):
                return self._call_public(name, file, node, at, variable)
            case Method(owner=Config() as config, name=verb) if verb in ROUTE_VERBS:
                arguments, keywords, _ = self._arguments(file, node, at)
                return RouteDecorator(config, verb, arguments, keywords, node.lineno)
            case Method(owner=Known(value=owner), name=name):
                return self._plain_call(lambda values, _: literals.call_method(owner, name, values), file, node, at)
            case Known(value=function) if callable(function) and _is_ours(function):
                return self._plain_call(lambda values, keywords: _call_ours(function, values, keywords), file, node, at)
            case Outside(name=name) if name in literals.CONVERSIONS:
                return self._plain_call(
                    lambda values, keywords: literals.convert(name, values, keywords), file, node, at
                )
            case Outside(name="os.getenv" | "os.environ.get"):
                return self._plain_call(lambda values, _: self._environ.get(*values), file, node, at)
            case Defined(file=defined_in):
                return Unknown(maybe_ours=self._mentions_us(defined_in))
            case Invalid() | Unknown(maybe_ours=True):
                return called
            case _:
                return Unknown()

    def _call_public(self, name: str, file: str, node: ast.Call, at: int, variable: str | None) -> Value:
        kind = self._vocabulary.kind(name)
        if kind in ("endpoint", "resource"):
            place = ConfigPlace(file, node.lineno, node.col_offset)
            config = self._configs.get(place)
            if config is None:
                config = self._configs[place] = self._config(name, place, node, at, variable)
            return config
        if kind == "remote":
            arguments, keywords, _ = self._arguments(file, node, at)
            config_value = keywords.pop("resource_config", None) or keywords.pop("resource", None)
            if arguments:
                config_value = arguments[0]
            return Decorator(config_value or Invalid(file, node.lineno, _NO_RESOURCE), keywords, node.lineno)
        if kind == "unknown":
            return Unknown(maybe_ours=True)
        try:
            values, plain = self._plain_arguments(file, node, at)
            return Known(self._vocabulary.get(name)(*values, **plain))
        except literals.NotPlain:
            return Unknown()
        except Exception as error:  # a value object of ours refuses its arguments, as it will when the file is imported
            return Invalid(file, node.lineno, f"{type(error).__name__}: {error}")

    def _config(self, name: str, place: ConfigPlace, node: ast.Call, at: int, variable: str | None) -> Config:
        arguments, keywords, open_ended = self._arguments(place.file, node, at)
        syntax = self._syntax_of(place.file)
        changed: tuple[str, ...] = ()
        if variable and isinstance(syntax, ModuleSyntax):
            changed = syntax.changed_settings.get(variable, ())
        return Config(place, name, variable, arguments, keywords, open_ended, changed)

    def _arguments(self, file: str, node: ast.Call, at: int) -> tuple[tuple[Value, ...], dict[str, Value], bool]:
        """Positional and keyword arguments, and whether some are hidden in a `*` or `**` of unknown content."""
        arguments: list[Value] = []
        keywords: dict[str, Value] = {}
        open_ended = False
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                spread = self._evaluate(file, argument.value, at, None)
                if isinstance(spread, Known) and isinstance(spread.value, (list, tuple)):
                    arguments += map(Known, spread.value)
                else:
                    open_ended = True
            else:
                arguments.append(self._evaluate(file, argument, at, None))
        for keyword in node.keywords:
            value = self._evaluate(file, keyword.value, at, None)
            if keyword.arg is not None:
                keywords[keyword.arg] = value
            elif isinstance(value, Known) and isinstance(value.value, dict):
                keywords.update({str(name): Known(item) for name, item in value.value.items()})
            else:
                open_ended = True
        return tuple(arguments), keywords, open_ended

    def _plain_call(
        self, compute: Callable[[list[Any], dict[str, Any]], Any], file: str, node: ast.Call, at: int
    ) -> Value:
        try:
            return Known(compute(*self._plain_arguments(file, node, at)))
        except (literals.NotPlain, TypeError):
            return Unknown()

    def _plain_arguments(self, file: str, node: ast.Call, at: int) -> tuple[list[Any], dict[str, Any]]:
        arguments, keywords, open_ended = self._arguments(file, node, at)
        if open_ended:
            raise literals.NotPlain
        return [known(value) for value in arguments], {name: known(value) for name, value in keywords.items()}

    def _plain(self, file: str, node: ast.expr, at: int) -> Any:
        """The plain value of a composed expression. Raises NotPlain."""

        def plain(part: ast.expr) -> Any:
            return known(self._evaluate(file, part, at, None))

        match node:
            case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
                return _container(node)(self._elements(file, elements, at))
            case ast.Dict():
                return self._dict(file, node, at)
            case ast.UnaryOp():
                return literals.unary(node.op, plain(node.operand))
            case ast.BinOp():
                return literals.binary(node.op, plain(node.left), plain(node.right))
            case ast.BoolOp():
                return self._bool_op(node, plain)
            case ast.Compare():
                return literals.compare(node.ops, [plain(node.left), *map(plain, node.comparators)])
            case ast.JoinedStr():
                return "".join(self._format(part, plain) for part in node.values)
            case ast.Subscript(value=ast.expr() as owner, slice=key):
                found = self._evaluate(file, owner, at, None)
                if found == Outside("os.environ"):
                    return literals.subscript(dict(self._environ), plain(key))
                return literals.subscript(known(found), plain(key))
            case _:
                raise literals.NotPlain

    def _elements(self, file: str, elements: list[ast.expr], at: int) -> list[Any]:
        values: list[Any] = []
        for element in elements:
            if isinstance(element, ast.Starred):
                spread = known(self._evaluate(file, element.value, at, None))
                values += literals.convert("list", [spread], {})
            else:
                values.append(known(self._evaluate(file, element, at, None)))
        return values

    def _dict(self, file: str, node: ast.Dict, at: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            item = known(self._evaluate(file, value, at, None))
            if key is None:
                result |= literals.convert("dict", [item], {})
            else:
                result |= literals.convert("dict", [[(known(self._evaluate(file, key, at, None)), item)]], {})
        return result

    @staticmethod
    def _bool_op(node: ast.BoolOp, plain: Callable[[ast.expr], Any]) -> Any:
        stops_at = isinstance(node.op, ast.Or)
        value: Any = None
        for part in node.values:
            value = plain(part)
            if bool(value) is stops_at:
                break
        return value

    @staticmethod
    def _format(part: ast.expr, plain: Callable[[ast.expr], Any]) -> str:
        match part:
            case ast.Constant(value=str() as text):
                return text
            case ast.FormattedValue(format_spec=None):
                return literals.formatted(plain(part.value), part.conversion)
            case _:
                raise literals.NotPlain

    def _mentions_us(self, file: str) -> bool:
        syntax = self._syntax_of(file)
        return isinstance(syntax, ModuleSyntax) and any(
            found.module.partition(".")[0] in PACKAGES for found in syntax.imports
        )


_SUBMODULES = frozenset({"functions", "core", "resources"})
"""Packages below ours whose names are looked up among the public ones."""
_NO_RESOURCE = '@remote needs a resource: write @remote(LiveServerless(name="my_worker"))'


def known(value: Value) -> Any:
    """The plain value behind `value`. Raises NotPlain."""
    match value:
        case Known(value=plain):
            return plain
        case Method(owner=Known(value=owner), name="value" | "name" as attribute) if _is_ours(type(owner)):
            return getattr(owner, attribute)
        case _:
            raise literals.NotPlain


def _container(node: ast.List | ast.Tuple | ast.Set) -> Callable[[list[Any]], Any]:
    if isinstance(node, ast.List):
        return list
    return tuple if isinstance(node, ast.Tuple) else _as_set


def _as_set(values: list[Any]) -> Any:
    return literals.convert("set", [values], {})


def _is_ours(found: Any) -> bool:
    return (getattr(found, "__module__", None) or "").partition(".")[0] in PACKAGES


def _call_ours(function: Callable[..., Any], arguments: list[Any], keywords: dict[str, Any]) -> Any:
    try:
        return function(*arguments, **keywords)
    except Exception as error:  # it will fail likewise when the file is imported, and be reported there
        raise literals.NotPlain from error


def environment() -> Mapping[str, str]:
    """What `os.environ` holds in this process."""
    return os.environ
