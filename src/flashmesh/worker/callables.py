"""What a worker can be asked to run, by callable id: plain functions, and methods of classes with their instances.

A class has one instance per worker and constructor arguments. It is made by the first call that needs it, inside that
call's user code (so limits and cancelling hold), or before the worker says READY when the constructor takes no
arguments. A class may set itself up asynchronously: `async def __aenter__(self)` is awaited once, before the instance
is used.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from flashmesh.functions.declarations import Declaration
from flashmesh.functions.errors import AmbiguousFunction, FunctionNotFound
from flashmesh.wire.arguments import Binder, Bound
from flashmesh.wire.signature import Purpose, Signer

if TYPE_CHECKING:
    from flashmesh.worker.loader import Loaded

log = logging.getLogger(__name__)

T = TypeVar("T")
Init = tuple[Sequence[Any], Mapping[str, Any]] | None
"""Constructor arguments of a class; None = none were given."""


def outside_loop(function: Callable[..., T], *args: Any) -> T:
    """Call user code from the loop's thread as if no loop ran, so that it may use `asyncio.run` itself."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return function(*args)
    finally:
        asyncio._set_running_loop(loop)


@dataclass(frozen=True, slots=True)
class Served:
    """A callable id and where it comes from. `method` is None for a function."""

    id: str
    declaration: Declaration
    method: str | None


class ClassWorker:
    """One class's instances in this worker, shared with local calls of the class."""

    def __init__(self, declaration: Declaration) -> None:
        self._cls = declaration.target
        self._instances = declaration.instances
        self._binder = _constructor_binder(self._cls)
        self._set_up: set[int] = set()
        self._setting_up: dict[int, asyncio.Future[None]] = {}
        self.sets_up = inspect.iscoroutinefunction(getattr(self._cls, "__aenter__", None))
        """Whether an instance needs the loop before its first use."""

    @property
    def takes_nothing(self) -> bool:
        """Whether the constructor has no parameters at all, so that there can only ever be one instance."""
        try:
            return not inspect.signature(self._cls).parameters
        except (TypeError, ValueError):
            return False

    def typed(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Constructor arguments as the types the constructor declares. Raises ValidationError for a wrong number."""
        if self._binder is None or not (args or kwargs):
            return args, kwargs
        bound = self._binder.bind_python(args, kwargs)
        return bound.args, bound.kwargs

    def get(self, init: Init) -> Any:
        """The instance for these typed arguments, made now if need be. Raises what the constructor raises."""
        return self._instances.get() if init is None else self._instances.get(tuple(init[0]), dict(init[1]))

    async def prepare(self, init: Init) -> None:
        """Make the instance and await its set-up; calls that come meanwhile wait for the same one."""
        instance = outside_loop(self.get, init)
        if not self.sets_up or id(instance) in self._set_up:
            return
        under_way = self._setting_up.get(id(instance))
        if under_way is not None:
            await asyncio.shield(under_way)
            return
        under_way = self._setting_up[id(instance)] = asyncio.get_running_loop().create_future()
        try:
            await instance.__aenter__()
        except BaseException as error:
            under_way.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            under_way.exception()  # read: nobody else may be waiting
            raise
        else:
            self._set_up.add(id(instance))
            under_way.set_result(None)
        finally:
            del self._setting_up[id(instance)]


def _constructor_binder(cls: Any) -> Binder | None:
    return None if cls.__init__ is object.__init__ else Binder(cls.__init__, bound=True)


class BoundCallable:
    """One callable, ready to be called with bound arguments.

    Attributes:
        id: `module.qualname`; for a method `module.Class.method`.
        function: the user's function; for a method the plain function of the class.
        binder: turns payloads into arguments.
        limit_ms: the run-time limit it declares for itself, 0 = none; None: its endpoint's.
        needs_loop: its calls have to be tasks.
    """

    __slots__ = (
        "_method",
        "binder",
        "function",
        "id",
        "is_async",
        "is_async_generator",
        "is_generator",
        "limit_ms",
        "needs_loop",
        "owner",
    )

    def __init__(self, served: Served, owner: ClassWorker | None) -> None:
        self.id = served.id
        target = served.declaration.target
        self.owner = owner
        self.limit_ms: int | None = served.declaration.overrides.get("execution_timeout_ms")
        self._method = served.method or ""
        self.function: Callable[..., Any] = target if served.method is None else getattr(target, served.method)
        takes_self = served.method is not None and inspect.isfunction(inspect.getattr_static(target, served.method))
        self.binder = Binder(self.function, bound=takes_self)
        self.is_async_generator = inspect.isasyncgenfunction(self.function)
        self.is_async = inspect.iscoroutinefunction(self.function)
        self.is_generator = self.is_async_generator or inspect.isgeneratorfunction(self.function)
        self.needs_loop = self.is_async or self.is_async_generator or (owner is not None and owner.sets_up)

    @property
    def name(self) -> str:
        """The last part of the id."""
        return self.id.rpartition(".")[2]

    def bind(
        self, payload: bytes, content_type: str, *, signer: Signer | None = None, context: Purpose | None = None
    ) -> Bound:
        """A call's arguments, the constructor's included. Raises ValidationError, MalformedRequest."""
        bound = self.binder.bind(payload, content_type, signer=signer, context=context)
        if self.owner is None or bound.init is None:
            return bound
        return bound._replace(init=self.owner.typed(*bound.init))

    async def prepare(self, bound: Bound) -> None:
        """Have the instance ready. Nothing to do for a plain function."""
        if self.owner is not None:
            await self.owner.prepare(bound.init)

    def call(self, bound: Bound) -> Any:
        """Run the body; a coroutine or generator is returned as it is."""
        if self.owner is None:
            return self.function(*bound.args, **bound.kwargs)
        return getattr(self.owner.get(bound.init), self._method)(*bound.args, **bound.kwargs)


class Callables(Mapping[str, BoundCallable]):
    """All callables of an endpoint, by id; `find` also knows bare names."""

    def __init__(self, served: Iterable[Served]) -> None:
        self._by_id: dict[str, BoundCallable] = {}
        self._owners: dict[int, ClassWorker] = {}
        for one in served:
            owner = None
            if one.method is not None:
                owner = self._owners.setdefault(id(one.declaration), ClassWorker(one.declaration))
            self._by_id[one.id] = BoundCallable(one, owner)
        self._by_name: dict[str, list[BoundCallable]] = {}
        for callable_ in self._by_id.values():
            parts = callable_.id.split(".")
            for count in range(1, len(parts)):
                self._by_name.setdefault(".".join(parts[-count:]), []).append(callable_)

    def __getitem__(self, key: str) -> BoundCallable:
        return self._by_id[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def any_async(self) -> bool:
        return any(callable_.is_async or callable_.is_async_generator for callable_ in self._by_id.values())

    def find(self, name: str) -> BoundCallable:
        """By id, else by the last parts of one. Raises FunctionNotFound or AmbiguousFunction, both listing ids."""
        found = self._by_id.get(name)
        if found is not None:
            return found
        candidates = self._by_name.get(name, ())
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            ids = ", ".join(candidate.id for candidate in candidates)
            raise AmbiguousFunction(f"{name!r} could be any of {ids}. Use one of these ids.")
        raise FunctionNotFound(f"No function {name!r} is served here. There are: {', '.join(self._by_id)}.")

    def only(self) -> BoundCallable:
        """The one callable of the endpoint. Raises AmbiguousFunction, listing ids, when there are several."""
        if len(self._by_id) == 1:
            return next(iter(self._by_id.values()))
        raise AmbiguousFunction(f"Say which function: {', '.join(self._by_id)}. Use POST /{{function}}/run_sync.")

    async def make_instances(self) -> None:
        """Make the instances whose constructors take nothing. One that fails is left to its first call."""
        for owner in self._owners.values():
            if not owner.takes_nothing:
                continue
            try:
                await owner.prepare(None)
            except Exception as error:
                log.debug("an instance could not be made ahead", exc_info=error)


def describe(loaded: "Loaded") -> list[dict[str, Any]]:
    """What READY says about each callable: id, kind, flavour, doc, and JSON schemas of arguments and result."""
    return [
        {
            "id": callable_.id,
            "kind": "function" if callable_.owner is None else "method",
            "is_async": callable_.is_async,
            "is_generator": callable_.is_generator,
            "doc": inspect.getdoc(callable_.function),
            "parameters": callable_.binder.parameters_schema(),
            "returns": callable_.binder.returns_schema(),
        }
        for callable_ in loaded.callables.values()
    ]
