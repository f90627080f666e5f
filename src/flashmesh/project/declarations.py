"""Which definitions of a file are declared ours by a decorator, and with which configuration object."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.remote import OVERRIDES
from flashmesh.kit.ids import FunctionId
from flashmesh.project import literals
from flashmesh.project.configs import is_load_balanced
from flashmesh.project.definitions import describe
from flashmesh.project.evaluate import Evaluator, known
from flashmesh.project.model import FunctionSpec, Problem
from flashmesh.project.naming import module_of, prefix_of
from flashmesh.project.syntax import Decorated, ModuleSyntax
from flashmesh.project.values import Config, Decorator, Defined, Invalid, Known, Public, RouteDecorator, Unknown, Value


class Declared(msgspec.Struct, frozen=True):
    """A function that belongs to a configuration object.

    `keywords`: the decorator's arguments that are known; `unresolved`: the names of the others; `line`: its own.
    """

    function: FunctionSpec
    config: Config
    line: int
    keywords: Mapping[str, Any]
    unresolved: tuple[str, ...] = ()


class NeedsImport(msgspec.Struct, frozen=True):
    """Only importing `file` tells whether, or with what, one of its definitions is decorated."""

    file: str


Finding = Declared | Problem | NeedsImport


def declarations(file: str, syntax: ModuleSyntax, evaluator: Evaluator) -> list[Finding]:
    """What `file` declares, in its order. Of two definitions of one name the last counts, as in Python."""
    findings: list[Finding] = []
    last = {decorated.node.name: decorated.at for decorated in syntax.decorated}
    for decorated in syntax.decorated:
        holds = evaluator.holds(file, decorated.conditions, at=decorated.at)
        if holds is False or (holds is True and last[decorated.node.name] != decorated.at):
            continue
        findings += _Reading(file, syntax, decorated, evaluator).findings()
    return findings


class _Reading(msgspec.Struct, frozen=True):
    file: str
    syntax: ModuleSyntax
    decorated: Decorated
    evaluator: Evaluator

    def findings(self) -> Iterator[Finding]:
        for node in self.decorated.node.decorator_list:
            finding = self._finding(node, self.evaluator.evaluate(self.file, node, at=self.decorated.at))
            if finding is not None:
                yield finding
                if isinstance(finding, Declared) and finding.function.decorated_by == "route":
                    continue  # routes stack: @api.get("/a") above @api.get("/b")
                return

    def _finding(self, node: ast.expr, value: Value) -> Finding | None:
        match value:
            case Decorator(config=Config() as config):
                return self._remote(config, value.keywords, value.line)
            case Decorator(config=Invalid() as invalid) | (Invalid() as invalid):
                return self._invalid(invalid, node)
            case Decorator(config=Known()):
                return self._problem(
                    node, "@remote was given something that is not a resource. Give it LiveServerless(name=…)."
                )
            case Decorator():
                return NeedsImport(self.file)
            case Config(class_name="Endpoint"):
                return self._declared(value, {}, decorated_by="endpoint")
            case Config(class_name=name):
                return self._problem(node, f"a {name} is not a decorator: write @remote({ast.unparse(node)})")
            case RouteDecorator():
                return self._route(value)
            case Public(name="remote" | "Endpoint" as name):
                example = "remote(LiveServerless(name=…))" if name == "remote" else "Endpoint(name=…)"
                return self._problem(node, f"@{name} needs its settings in parentheses: write @{example}")
            case Unknown(maybe_ours=True):
                return NeedsImport(self.file)
            case _:
                return None

    def _remote(self, config: Config, keywords: Mapping[str, Value], line: int) -> Finding:
        if not is_load_balanced(config):
            return self._declared(config, keywords, decorated_by="remote")
        method, path = (_text(keywords.get(name)) for name in ("method", "path"))
        if any(isinstance(keywords.get(name), Unknown) for name in ("method", "path")):
            return NeedsImport(self.file)
        if method is None or path is None:
            return Problem(
                file=self.file,
                line=line,
                reason=f"{self.decorated.node.name} belongs to a load-balanced resource: "
                'give @remote a method and a path, such as method="POST", path="/compute"',
                prefix=prefix_of(self.file),
            )
        return self._declared(config, keywords, decorated_by="remote", http=(method.upper(), path))

    def _route(self, value: RouteDecorator) -> Finding | None:
        if value.config.class_name != "Endpoint":
            return None
        given = value.arguments[0] if value.arguments else value.keywords.get("path")
        path = _text(given)
        if path is None:
            return NeedsImport(self.file)
        keywords = {name: given for name, given in value.keywords.items() if name != "path"}
        return self._declared(value.config, keywords, decorated_by="route", http=(value.verb.upper(), path))

    def _declared(
        self, config: Config, keywords: Mapping[str, Value], *, decorated_by: str, http: tuple[str, str] | None = None
    ) -> Declared:
        node = self.decorated.node
        settings = _Settings(keywords)
        line = next((decorator.lineno for decorator in node.decorator_list), node.lineno)
        described = describe(node, bases_of=self._bases_of, may_yield=self.syntax.yields)
        function = FunctionSpec(
            id=FunctionId(f"{module_of(self.file)}.{node.name}"),
            name=node.name,
            module=module_of(self.file),
            file=self.file,
            line=node.lineno,
            qualname=node.name,
            kind="class" if isinstance(node, ast.ClassDef) else "function",
            is_async=described.is_async,
            is_generator=described.is_generator,
            methods=described.methods,
            http_method=http[0] if http else None,
            http_path=http[1] if http else None,
            decorated_by="route" if decorated_by == "route" else "endpoint" if decorated_by == "endpoint" else "remote",
            local=settings.flag("local"),
            accelerate_downloads=settings.flag("accelerate_downloads", default=True),
            dependencies=settings.texts("dependencies"),
            system_dependencies=settings.texts("system_dependencies"),
            doc=described.doc,
            parameters=described.parameters,
            overrides=settings.overrides(),
        )
        return Declared(function, config, line, settings.known, tuple(settings.unresolved))

    def _bases_of(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        bases: list[ast.ClassDef] = []
        for base in node.bases:
            value = self.evaluator.evaluate(self.file, base, at=self.decorated.at)
            if isinstance(value, Defined) and isinstance(value.node, ast.ClassDef):
                bases.append(value.node)
        return bases

    def _invalid(self, invalid: Invalid, node: ast.expr) -> Problem:
        if invalid.file == self.file:
            return Problem(file=self.file, line=invalid.line, reason=invalid.reason, prefix=prefix_of(self.file))
        return self._problem(node, f"what it takes from {invalid.file}:{invalid.line} cannot be used: {invalid.reason}")

    def _problem(self, node: ast.expr, reason: str) -> Problem:
        return Problem(file=self.file, line=node.lineno, reason=reason, prefix=prefix_of(self.file))


class _Settings:
    """Keyword arguments of a decorator: those that are known, and the names of the others."""

    def __init__(self, keywords: Mapping[str, Value]) -> None:
        self.known: dict[str, Any] = {}
        self.unresolved: list[str] = []
        for name, value in keywords.items():
            try:
                self.known[name] = known(value)
            except literals.NotPlain:
                self.unresolved.append(name)

    def flag(self, name: str, *, default: bool = False) -> bool:
        return bool(self.known.get(name, default))

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.known.get(name)
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, (list, tuple)) else ()

    def overrides(self) -> tuple[tuple[str, Any], ...]:
        """Settings a function gives for itself. One with an unusable value is left out: the decorator refuses it."""
        found: list[tuple[str, Any]] = []
        for name in OVERRIDES.keys() & self.known.keys():
            if self.known[name] is not None:
                try:
                    found.append((name, OVERRIDES[name](name, self.known[name])))
                except DeclarationError:
                    continue
        return tuple(sorted(found))


def _text(value: Value | None) -> str | None:
    match value:
        case Known(value=str() as text):
            return text
        case _:
            return None
