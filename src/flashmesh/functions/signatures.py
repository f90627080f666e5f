"""The types of decorated functions, for type checkers. Nothing imports this while a program runs."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from flashmesh.functions.declarations import Declaration
from flashmesh.functions.fanout import Fanout
from flashmesh.functions.jobs import Job

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
Exceptions = type[BaseException] | str | Iterable[type[BaseException] | str]


class Function(Protocol[P, R_co]):
    """`@remote` on `def` or `async def`."""

    __flash__: Declaration
    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...
    def call(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @property
    def local(self) -> Callable[P, Any]: ...
    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> Job: ...
    def map(
        self,
        items: Iterable[Any],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Fanout: ...
    def starmap(
        self,
        items: Iterable[Iterable[Any]],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Fanout: ...


class ItemStream(Protocol[R_co]):
    """What a generator function's handle returns: items for `async for`, their list for `await`."""

    def __aiter__(self) -> AsyncIterator[R_co]: ...
    def __await__(self) -> Generator[Any, Any, list[Any]]: ...
    def send(self, value: Any, /) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None, /) -> Any: ...
    def close(self) -> None: ...


class StreamingFunction(Protocol[P, R_co]):
    """`@remote` on a generator function, `def` or `async def`."""

    __flash__: Declaration
    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ItemStream[R_co]: ...
    def call(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[R_co]: ...
    @property
    def local(self) -> Callable[P, Any]: ...
    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> Job: ...
    def map(
        self,
        items: Iterable[Any],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Fanout: ...
    def starmap(
        self,
        items: Iterable[Iterable[Any]],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Fanout: ...


class Decorator(Protocol):
    """What `remote(…)` returns. No type can say that a class's methods have become awaitable, so a class is Any."""

    @overload
    def __call__(self, target: type[Any], /) -> Any: ...
    @overload
    def __call__(self, target: Callable[P, AsyncIterator[R]], /) -> StreamingFunction[P, R]: ...
    @overload
    def __call__(self, target: Callable[P, Iterator[R]], /) -> StreamingFunction[P, R]: ...
    @overload
    def __call__(self, target: Callable[P, Awaitable[R]], /) -> Function[P, R]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> Function[P, R]: ...


class RouteDecorator(Protocol):
    """What `api.head("/path")` returns: it gives the function back as it is."""

    def __call__(self, target: F, /) -> F: ...


class RouteOrRequest(RouteDecorator, Protocol):
    """What `api.get("/path")` returns: such a decorator, or of a client (`id=`, `image=`) a request to await."""

    def __await__(self) -> Generator[Any, Any, Any]: ...
