"""What the generated server file declared, and which of it a request means. Pure: no HTTP, no call."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from flashmesh.worker.lb.route import HttpRoute, path_pattern

Verb = Literal["run", "run_sync", "runsync", "status", "cancel", "stream"]
CALL_VERBS: tuple[Verb, ...] = ("run", "run_sync", "runsync")
LOOK_VERBS: Mapping[str, tuple[str, ...]] = {
    "status": ("GET", "HEAD"),
    "cancel": ("POST", "GET"),
    "stream": ("GET", "POST"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueueRoute:
    """One callable that workers run."""

    prefix: str
    function: str
    """Callable id, `module.function` or `module.Class.method`."""
    resource: str
    file: str
    line: int | None = None
    is_generator: bool = False
    doc: str | None = None
    parameters: tuple[Mapping[str, Any], ...] = ()
    """name, annotation?, default?, kind? — source text, from syntax."""

    @property
    def name(self) -> str:
        return self.function.rsplit(".", 1)[-1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """Everything below `prefix` answers 503."""

    prefix: str
    file: str
    line: int | None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallMatch:
    """POST to a callable."""

    route: QueueRoute
    verb: Verb


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceMatch:
    """POST to a file with several callables: the body must say which."""

    routes: tuple[QueueRoute, ...]
    verb: Verb
    wanted: str | None = None
    """A name in the path that none of them has."""


@dataclasses.dataclass(frozen=True, slots=True)
class LookMatch:
    """status, cancel or stream of one execution."""

    verb: Literal["status", "cancel", "stream"]
    execution: str


@dataclasses.dataclass(frozen=True, slots=True)
class HttpMatch:
    """A declared HTTP route."""

    route: HttpRoute


@dataclasses.dataclass(frozen=True, slots=True)
class WrongMethod:
    """The path exists, for `allowed` only."""

    allowed: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class NoRoute:
    """Nothing there. `nearest` is a route (method and path) that looks alike, if one does."""

    nearest: str | None


Match = CallMatch | ChoiceMatch | LookMatch | HttpMatch | Unavailable | WrongMethod | NoRoute


class RouteBook:
    """Every route of one server. Filled while `.flash/server.py` is executed, then only read."""

    def __init__(self) -> None:
        self.queue: list[QueueRoute] = []
        self.http: list[HttpRoute] = []
        self.unavailable: list[Unavailable] = []
        self._calls: dict[str, CallMatch] = {}
        self._groups: dict[str, list[QueueRoute]] = {}
        self._prefixes: set[str] = set()
        self._exact: dict[str, dict[str, HttpRoute]] = {}
        self._patterns: list[tuple[re.Pattern[str], HttpRoute]] = []

    def add_queue(self, route: QueueRoute) -> None:
        self.queue.append(route)
        for verb in CALL_VERBS:
            self._calls[f"{route.prefix}/{verb}"] = CallMatch(route, verb)
        base = base_prefix(route.file)
        self._prefixes |= {route.prefix, base}
        if route.prefix != base:
            self._groups.setdefault(base, []).append(route)

    def add_http(self, route: HttpRoute) -> None:
        self.http.append(route)
        if "{" in route.path:
            self._patterns.append((path_pattern(route.path), route))
        else:
            self._exact.setdefault(route.path, {})[route.method] = route

    def add_unavailable(self, fault: Unavailable) -> None:
        self.unavailable.append(fault)

    def match_call(self, path: str) -> CallMatch | None:
        """The hot path: a POST to a callable's own address."""
        return self._calls.get(path)

    def match(self, method: str, path: str) -> Match:
        """What a request means. Declared HTTP routes go before the queue's, exact paths before patterns."""
        found = self._http_routes(path)
        if method in found:
            return HttpMatch(found[method])
        if method == "HEAD" and "GET" in found:
            return HttpMatch(found["GET"])
        call = self._calls.get(path) or self._choice(path)
        if call is not None and method == "POST":
            return call
        look = self._look(path)
        if look is not None and method in LOOK_VERBS[look.verb]:
            return look
        fault = self._fault(path)
        if fault is not None:
            return fault
        allowed = [*found, *(["HEAD"] if "GET" in found else [])]
        allowed += ["POST"] if call is not None else []
        allowed += LOOK_VERBS[look.verb] if look is not None else []
        if allowed:
            return WrongMethod(tuple(dict.fromkeys([*allowed, "OPTIONS"])))
        return NoRoute(self.nearest(method, path))

    def _http_routes(self, path: str) -> dict[str, HttpRoute]:
        found = dict(self._exact.get(path, ()))
        for pattern, route in self._patterns:
            if route.method not in found and pattern.fullmatch(path):
                found[route.method] = route
        return found

    def _choice(self, path: str) -> ChoiceMatch | None:
        prefix, _, verb = path.rpartition("/")
        if verb not in CALL_VERBS:
            return None
        if prefix in self._groups:
            return ChoiceMatch(tuple(self._groups[prefix]), verb)
        base, _, name = prefix.rpartition("/")
        if base in self._groups:
            return ChoiceMatch(tuple(self._groups[base]), verb, wanted=name)
        return None

    def _look(self, path: str) -> LookMatch | None:
        rest, _, execution = path.rpartition("/")
        prefix, _, verb = rest.rpartition("/")
        if prefix in self._prefixes and execution and verb in LOOK_VERBS:
            return LookMatch(verb, execution)  # type: ignore[arg-type]
        return None

    def _fault(self, path: str) -> Unavailable | None:
        below = [fault for fault in self.unavailable if path == fault.prefix or path.startswith(fault.prefix + "/")]
        return max(below, key=lambda fault: len(fault.prefix), default=None)

    def nearest(self, method: str, path: str) -> str | None:
        """A route whose path resembles this one, as `METHOD /path`."""
        known = dict(self.addresses())
        alike = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
        if not alike:
            last = path.rstrip("/").rpartition("/")[2]
            alike = [known_path for known_path in known if last and last in known_path.split("/")][:1]
        return f"{known[alike[0]]} {alike[0]}" if alike else None

    def addresses(self) -> Iterable[tuple[str, str]]:
        """(path, method) of everything that can be asked for."""
        for http in self.http:
            yield http.path, http.method
        for route in self.queue:
            for verb in CALL_VERBS:
                yield f"{route.prefix}/{verb}", "POST"
            yield f"{route.prefix}/status/{{id}}", "GET"
        yield "/docs", "GET"
        yield "/ping", "GET"


def base_prefix(file: str) -> str:
    """`/api/routes` of `api/routes.py`."""
    return "/" + file.removesuffix(".py")


def select(choice: ChoiceMatch, named: str | None) -> QueueRoute | None:
    """The callable of a file that a body names; None when it names none of them.

    A class's method may be named alone (`inc`) or with its class (`Counter.inc`).
    """
    if named is None:
        return None
    ends = [route for route in choice.routes if route.function == named or route.function.endswith("." + named)]
    return ends[0] if len(ends) == 1 else None
