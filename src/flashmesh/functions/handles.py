"""What a decorator puts in the place of a function: calls that find their own road.

A handle is a plain function, so that it pickles by reference, has the name, signature and annotations of the user's,
and is taken for a coroutine function wherever that is asked. Its other ways to call (`call`, `local`, `spawn`, `map`,
`starmap`) are attributes.
"""

from __future__ import annotations

import time
from functools import update_wrapper
from types import FunctionType

from flashmesh.functions.blocking import iterate_blocking, loop_is_running, run_blocking
from flashmesh.functions.calls import Call, installed, process
from flashmesh.functions.declarations import CO_COROUTINE
from flashmesh.functions.errors import QueueFull
from flashmesh.functions.streams import Stream, as_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
    from typing import Any

    from flashmesh.functions.declarations import Body, Declaration
    from flashmesh.functions.fanout import Fanout
    from flashmesh.functions.jobs import Job

SPAWN_PATIENCE_S = 300.0
"""How long `spawn` in plain code keeps coming back to a full queue: as long as a call from peer to peer may take."""

MAP_CONCURRENCY = 32
"""Calls of one `map` at a time, unless the resource's workers can take more: then twice what they can run."""


class Callee:
    """A decorated function, or one method of one object of a decorated class, and the ways to call it."""

    __slots__ = ("_plain", "body", "declaration", "init", "method")

    def __init__(
        self,
        declaration: Declaration,
        body: Body,
        *,
        method: str | None = None,
        init: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    ) -> None:
        self.declaration = declaration
        self.body = body
        self.method = method
        self.init = init
        self._plain: Callable[..., Any] | None = None

    def plain(self) -> Callable[..., Any]:
        """The user's own function. For a method this makes the object, if this process has none yet."""
        if self._plain is None:
            plain: Callable[..., Any] = self.declaration.target
            if self.method is not None and self.init is not None:
                plain = getattr(self.declaration.instances.get(*self.init), self.method)
            self._plain = plain
        return self._plain

    def is_here(self) -> bool:
        """Whether this process runs the body itself."""
        return self.declaration.local or installed().is_local(self.declaration)

    def call_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return Call(self.declaration, args, kwargs, method=self.method, init=self.init)

    # What the handle's attributes do.

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call from plain code: blocks, and returns the value (of a generator function: an iterator of its items)."""
        if not self.is_here():
            road = installed().stream_blocking if self.body.is_generator else installed().call_blocking
            return road(self.call_of(args, kwargs))
        result = self.plain()(*args, **kwargs)
        if hasattr(type(result), "__anext__"):
            return iterate_blocking(result)
        return run_blocking(result) if hasattr(type(result), "__await__") else result

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body in this process, exactly as if it were not decorated."""
        return self.plain()(*args, **kwargs)

    def spawn(self, *args: Any, **kwargs: Any) -> Job:
        """Have it run later; returns once it is accepted.

        A full queue is obeyed: plain code waits as long as it is told to, up to SPAWN_PATIENCE_S in all. A coroutine
        gets QueueFull at once, because waiting here would stop its loop: `await asyncio.sleep(error.retry_after)`.
        """
        if self.declaration.local:
            from flashmesh.functions.local_jobs import start_local_job  # threads, only where they are used

            return start_local_job(lambda: self.plain()(*args, **kwargs))
        patience = 0.0 if loop_is_running() else SPAWN_PATIENCE_S
        given_up = time.monotonic() + patience
        while True:
            try:
                return installed().spawn(self.call_of(args, kwargs))
            except QueueFull as full:
                if time.monotonic() + full.retry_after > given_up:
                    raise
                time.sleep(full.retry_after)

    def map(
        self,
        items: Iterable[Any],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Fanout:
        """One call per item. `ordered=False` gives results as they come."""
        return self.starmap(
            _Singles(items), concurrency=concurrency, ordered=ordered, return_exceptions=return_exceptions
        )

    def starmap(
        self,
        items: Iterable[Iterable[Any]],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Fanout:
        """The same; each item is unpacked into the function's arguments."""
        from flashmesh.functions.fanout import Fanout  # only programs that fan out need it

        return Fanout(
            items,
            async_call=streaming(self) if self.body.is_generator else awaitable(self),
            blocking_call=self._listed_call,
            is_here=self.is_here,
            concurrency=self._usual_concurrency() if concurrency is None else concurrency,
            ordered=ordered,
            return_exceptions=return_exceptions,
        )

    def _listed_call(self, *args: Any) -> Any:
        result = self.call(*args)
        return list(result) if self.body.is_generator else result

    def _usual_concurrency(self) -> int:
        config = self.declaration.config
        return max(MAP_CONCURRENCY, 2 * config.workers_max * config.max_concurrency)


class _Singles:
    """Each item as a tuple of one; can be gone through as often as `items` can."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Any:
        return ((item,) for item in self._items)


def handle_of(callee: Callee, wrapped: Callable[..., Any]) -> Any:
    """The function that stands in for `wrapped`."""
    handle = streaming(callee) if callee.body.is_generator else awaitable(callee)
    update_wrapper(handle, wrapped)
    handle.__dict__.update(
        __flash__=callee.declaration,
        call=callee.call,
        local=callee.local,
        spawn=callee.spawn,
        map=callee.map,
        starmap=callee.starmap,
    )
    return handle


def awaitable(callee: Callee) -> Callable[..., Coroutine[Any, Any, Any]]:
    """`f(x)` gives a coroutine: the body's own where this process runs it, else the Caller's.

    Whether the body runs here is asked once per Caller and remembered. There, a call costs one more function call and
    no task; returning the body's coroutine instead of awaiting it in a second one is a third cheaper.
    """
    here: object = callee  # the Caller that said "here"; the callee itself stands for "nobody yet"
    run: Callable[..., Coroutine[Any, Any, Any]]

    def handle(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        nonlocal here, run
        if process.caller is here:
            return run(*args, **kwargs) if kwargs else run(*args)
        if not callee.is_here():
            return installed().call(callee.call_of(args, kwargs))
        plain = callee.plain()
        run, here = plain if callee.body.is_async else _finishing(plain), process.caller
        return run(*args, **kwargs)

    labelled: Callable[..., Coroutine[Any, Any, Any]] = _as_coroutine_function(handle)
    return labelled


def _finishing(plain: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        return await result if hasattr(type(result), "__await__") else result

    return run


def _as_coroutine_function(function: Any) -> Any:
    """The same function, for which `inspect.iscoroutinefunction` is true on every version.

    It returns coroutines without being `async def`. The flag is a label only: what makes an `async def` run lazily is
    an instruction in its code. (`inspect.markcoroutinefunction` says the same from 3.12 on, but needs `inspect`.)
    """
    code = function.__code__
    labelled = code.replace(co_flags=code.co_flags | CO_COROUTINE)
    return FunctionType(labelled, function.__globals__, function.__name__, None, function.__closure__)


def streaming(callee: Callee) -> Callable[..., Stream]:
    """`f(x)` gives a Stream."""

    def handle(*args: Any, **kwargs: Any) -> Stream:
        here = callee.is_here()  # asked now, so that a call during an import ends the import even if nobody iterates

        def opened() -> AsyncIterator[Any]:
            if not here:
                return installed().stream(callee.call_of(args, kwargs))
            items = callee.plain()(*args, **kwargs)
            return items if hasattr(type(items), "__anext__") else as_async(items)

        return Stream(opened)

    return handle
