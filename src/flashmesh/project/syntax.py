"""One Python file as syntax: the names it binds at module level and the definitions that bear a decorator.

Nothing is executed. Statements inside `if`, `try` and `with` count as module level; what is nested in a function does
not.
"""

import ast
import re
from collections.abc import Iterable, Iterator

import msgspec

PACKAGES = ("flashmesh", "runpod_flash", "tetra_rp")
"""Import names that mean us."""

_MENTIONS = re.compile(rb"\b(?:flashmesh|runpod_flash|tetra_rp)\b")
_DECORATOR = re.compile(rb"^[ \t]*@[ \t]*([^\s.(#]+)", re.MULTILINE)
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]", re.MULTILINE)
_NESTED_IMPORT = re.compile(rb"^[ \t]+(?:from|import)[ \t]", re.MULTILINE)
_COMMON_DECORATORS = frozenset(
    b"property staticmethod classmethod dataclass dataclasses functools contextlib contextmanager asynccontextmanager "
    b"abc abstractmethod typing overload override final cached_property lru_cache cache wraps total_ordering "
    b"singledispatch pytest unittest patch fixture given hypothesis click jit njit numba torch unique atexit".split()
)

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Import(msgspec.Struct, frozen=True):
    """One imported name, or (`name` None) a module itself. `level` counts leading dots."""

    module: str
    level: int = 0
    name: str | None = None


class Condition(msgspec.Struct, frozen=True):
    """The enclosing `if` of a statement, and the branch it stands in."""

    test: ast.expr
    branch: bool


class Binding(msgspec.Struct, frozen=True):
    """One moment a module-level name gets a value. `at` orders the bindings and definitions of a file.

    `index`: the place in a tuple that `value` evaluates to (`a, b = 1, 2`), else None.
    """

    at: int
    value: ast.expr | Import | Definition
    conditions: tuple[Condition, ...] = ()
    index: int | None = None


class Decorated(msgspec.Struct, frozen=True):
    """A function or class with at least one decorator."""

    at: int
    node: Definition
    conditions: tuple[Condition, ...] = ()


class ModuleSyntax(msgspec.Struct, frozen=True):
    """What one file says. `imports` holds every import anywhere in it, nested ones too."""

    bindings: dict[str, tuple[Binding, ...]]
    decorated: tuple[Decorated, ...]
    stars: tuple[Import, ...]
    imports: tuple[Import, ...]
    changed_settings: dict[str, tuple[str, ...]]
    """Attributes assigned after the fact (`gpu.workersMax = 5`), by the variable's name."""
    yields: bool
    """Whether the word `yield` occurs at all."""


class SyntaxProblem(msgspec.Struct, frozen=True):
    """Why a file cannot be parsed."""

    line: int | None
    reason: str


def mentions_us(source: bytes) -> bool:
    """Whether the text names one of our packages."""
    return _MENTIONS.search(source) is not None


def may_declare(source: bytes) -> bool:
    """Whether the text can hold a function of ours: it has a decorator that is not a well-known one, and an import.

    Our package need not be named: `from app import api` and `@api.get("/x")` declare a route.
    """
    if _IMPORT.search(source) is None:
        return False
    return any(found not in _COMMON_DECORATORS for found in _DECORATOR.findall(source))


def parse(source: bytes) -> ModuleSyntax | SyntaxProblem:
    """Read one file. Whatever the bytes are, the answer is a value, never an exception."""
    try:
        tree = ast.parse(source)
        return _Reader(has_nested_imports=_NESTED_IMPORT.search(source) is not None).read(
            tree, yields=b"yield" in source
        )
    except SyntaxError as error:
        return SyntaxProblem(error.lineno, f"{type(error).__name__}: {error.msg}")
    except ValueError as error:  # null bytes on Python 3.11
        return SyntaxProblem(None, f"it cannot be read as Python: {error}")
    except (RecursionError, MemoryError):
        return SyntaxProblem(None, "it is nested too deeply to be read")


class _Reader:
    def __init__(self, *, has_nested_imports: bool) -> None:
        self._has_nested_imports = has_nested_imports
        self._at = 0
        self._bindings: dict[str, list[Binding]] = {}
        self._decorated: list[Decorated] = []
        self._stars: list[Import] = []
        self._imports: list[Import] = []
        self._changed: dict[str, list[str]] = {}

    def read(self, tree: ast.Module, *, yields: bool) -> ModuleSyntax:
        self._block(tree.body, ())
        return ModuleSyntax(
            bindings={name: tuple(bindings) for name, bindings in self._bindings.items()},
            decorated=tuple(self._decorated),
            stars=tuple(self._stars),
            imports=tuple(dict.fromkeys(self._imports)),
            changed_settings={name: tuple(changed) for name, changed in self._changed.items()},
            yields=yields,
        )

    def _block(self, statements: Iterable[ast.stmt], conditions: tuple[Condition, ...]) -> None:
        for statement in statements:
            self._at += 1
            self._statement(statement, conditions)

    def _statement(self, node: ast.stmt, conditions: tuple[Condition, ...]) -> None:
        match node:
            case ast.Import() | ast.ImportFrom():
                self._import(node, conditions)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.decorator_list:
                    self._decorated.append(Decorated(self._at, node, conditions))
                self._bind(node.name, node, conditions)
                if self._has_nested_imports:
                    self._imports.extend(_nested_imports(node))
            case ast.Assign():
                for target in node.targets:
                    self._assign(target, node.value, conditions)
            case ast.AnnAssign(value=ast.expr() as value):
                self._assign(node.target, value, conditions)
            case ast.AugAssign(target=ast.Name(id=name)):
                self._bind(name, ast.BinOp(ast.Name(name, ast.Load()), node.op, node.value), conditions)
            case _:
                self._compound(node, conditions)

    def _compound(self, node: ast.stmt, conditions: tuple[Condition, ...]) -> None:
        """The blocks of a statement, in an order that puts the likeliest values last (the last binding wins)."""
        match node:
            case ast.If():
                if _is_type_checking(node.test):
                    self._block(node.orelse, conditions)
                    self._imports.extend(_nested_imports(node))
                elif _is_main_guard(node.test):
                    self._block(node.orelse, conditions)
                else:
                    self._block(node.orelse, (*conditions, Condition(node.test, branch=False)))
                    self._block(node.body, (*conditions, Condition(node.test, branch=True)))
            case ast.Try() | ast.TryStar():
                for handler in node.handlers:
                    self._block(handler.body, conditions)
                for block in (node.body, node.orelse, node.finalbody):
                    self._block(block, conditions)
            case ast.With() | ast.AsyncWith():
                self._block(node.body, conditions)
            case ast.For() | ast.While():
                self._imports.extend(_nested_imports(node))
            case _:
                return

    def _import(self, node: ast.Import | ast.ImportFrom, conditions: tuple[Condition, ...]) -> None:
        for imported in _imported(node):
            self._imports.append(imported)
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds `a`, `import a.b as c` binds `a.b`.
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                self._bind(alias.asname or bound, Import(bound), conditions)
            return
        for alias in node.names:
            imported = Import(node.module or "", node.level, alias.name)
            if alias.name == "*":
                self._stars.append(imported)
            else:
                self._bind(alias.asname or alias.name, imported, conditions)

    def _assign(self, target: ast.expr, value: ast.expr, conditions: tuple[Condition, ...]) -> None:
        match target:
            case ast.Name(id=name):
                self._bind(name, value, conditions)
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                for index, element in enumerate(targets):
                    if isinstance(element, ast.Name):
                        self._bind(element.id, value, conditions, index=index)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                self._changed.setdefault(name, []).append(attribute)
            case _:
                return

    def _bind(
        self,
        name: str,
        value: ast.expr | Import | Definition,
        conditions: tuple[Condition, ...],
        *,
        index: int | None = None,
    ) -> None:
        self._bindings.setdefault(name, []).append(Binding(self._at, value, conditions, index))


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[Import]:
    """What an import statement may load: each module, and each name that could be a submodule."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name)
    else:
        for alias in node.names:
            yield Import(node.module or "", node.level, alias.name)


def _nested_imports(node: ast.AST) -> Iterator[Import]:
    """Every import inside `node`: only blocks are walked, expressions hold none."""
    pending: list[ast.AST] = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, (ast.Import, ast.ImportFrom)):
            yield from _imported(current)
            continue
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(current, block, None)
            if isinstance(inner, list):
                pending.extend(inner)


def _is_type_checking(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case _:
            return False


def _is_main_guard(test: ast.expr) -> bool:
    """`if __name__ == "__main__":` never holds where functions are served."""
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")]):
            return True
        case _:
            return False
