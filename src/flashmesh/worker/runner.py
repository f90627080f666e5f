"""Runs calls in a worker: slots, user code, streams, and what becomes of their outcome.

A synchronous body runs in the main thread, from a plain callback of the loop and with the running loop unset, so that
user code may call `asyncio.run` itself; no task is made for it. An asynchronous body is a task. A generator is stepped
from callbacks while its reader's window is open. Every body runs in a context of its own, which holds `CURRENT`.
"""

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic_ns
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

from flashmesh.functions.errors import RemoteError
from flashmesh.wire import values
from flashmesh.wire.arguments import Bound
from flashmesh.wire.failures import USER_ERROR
from flashmesh.wire.frames import BINARY, JSON, MSGPACK
from flashmesh.wire.lending import Borrowed
from flashmesh.wire.signature import Purpose, Signer
from flashmesh.worker.callables import BoundCallable
from flashmesh.worker.cancellation import Canceller, enter
from flashmesh.worker.context import WorkerContext
from flashmesh.worker.invocation import CURRENT, Invocation
from flashmesh.worker.records import Running
from flashmesh.worker.streams import ItemList, Window

log = logging.getLogger(__name__)

_END: Final = object()
_TURN_NS: Final = 500_000
"""How long a generator may be stepped before the loop gets a turn: long enough to batch small items into one write,
short enough that a cancel or another call is not kept waiting."""
_LOOPED: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)


class Runner:
    """One worker's calls.

    Args:
        limit: calls at a time; calls over the limit (re-entrant ones) use the record's spare slots.
        default_run_ms: the endpoint's own run-time limit, which the template knows; other deadlines are told to it.
            A function may have another one of its own.
        on_free: told whenever the number of free slots changed; `by_link` True when the link's own RESULT carries it.
        on_idle: told when the last taken slot was given back.
    """

    def __init__(
        self,
        *,
        context: WorkerContext,
        limit: int,
        default_run_ms: int = 0,
        signer: Signer | None = None,
        on_free: Callable[[int, bool], None],
        on_idle: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._copied = False
        """This is a child that user code forked."""
        os.register_at_fork(after_in_child=self._note_copy)
        self._context = context
        self._record = context.record
        self.limit = limit
        self._default_run_ms = default_run_ms
        self._signer = signer
        self._on_free = on_free
        self._on_idle = on_idle
        self._base = contextvars.copy_context()
        self._slots = list(range(context.record.slots - 1, -1, -1))
        self._taken = 0
        self.running: dict[int, Invocation] = {}
        self.by_execution: dict[str, Invocation] = {}
        self.canceller = Canceller(loop=self._loop, record=context.record, running=self.running)
        self.calls = 0
        self.failures = 0
        self.next_in: Callable[[int], Callable[[int], None] | None] | None = None
        """Asked when a call of the link has ended, with its run time in µs: who has another one for its slot."""
        self.on_peer_end: Callable[[Invocation, str, int], None] | None = None
        """Told how each call of a peer ended: its code (empty for a success) and its run time in µs."""

    @property
    def free(self) -> int:
        """Slots that may be taken within the limit."""
        return max(0, self.limit - self._taken)

    @property
    def taken(self) -> int:
        return self._taken

    def limit_ms(self, target: BoundCallable) -> int:
        """How long a call of it may run, 0 = no limit."""
        return self._default_run_ms if target.limit_ms is None else target.limit_ms

    def take(self, *, by_link: bool, over_limit: bool = False) -> int | None:
        """Reserve a slot; None when there is none. `over_limit`: use a spare one when the limit is reached."""
        if not self._slots or (self._taken >= self.limit and not over_limit):
            return None
        self._taken += 1
        self._on_free(self.free, by_link)
        return self._slots.pop()

    def give(self, slot: int, *, by_link: bool) -> None:
        """Give a reserved slot back."""
        self._slots.append(slot)
        self._taken -= 1
        self._on_free(self.free, by_link)
        if self._taken == 0:
            self._on_idle()

    def begin(self, invocation: Invocation, slot: int, *, by_link: bool) -> None:
        """Run it in a slot that was taken for it. Its reply is told the outcome; nothing is raised."""
        invocation.slot = slot
        invocation.by_link = by_link
        target = invocation.target
        if limit_ms := self.limit_ms(target):
            invocation.tighten(limit_ms)
        try:
            bound = target.bind(
                invocation.payload,
                invocation.content_type,
                signer=self._signer,
                context=None if invocation.content_type == JSON else Purpose(target.id, "call", invocation.execution),
            )
        except Exception as error:
            self._fail(invocation, error, ran=False)
            return
        payload: object = invocation.payload
        invocation.payload = b""  # the values are made, and refer to nothing of it
        if isinstance(payload, Borrowed):
            payload.close()
        context = invocation.context = self._base.copy()
        context.run(CURRENT.set, invocation)
        self.running[slot] = invocation
        self.by_execution[invocation.execution] = invocation
        self._record.set_running(slot, invocation.execution, target.id, invocation.deadline_ns)
        if invocation.deadline_ns and invocation.deadline_ms != self._default_run_ms:
            self._context.tell_deadline()
        wait_a_turn = invocation.reply.started(invocation, sync=not target.needs_loop)
        if target.needs_loop:
            self._start_task(invocation, self._run_async(invocation, bound))
        elif wait_a_turn:
            self._loop.call_soon(self._run_sync, invocation, bound)
        else:
            self._run_sync(invocation, bound)

    def _note_copy(self) -> None:
        self._copied = True

    def begun(self) -> list[Running]:
        """What each slot began last."""
        return self._record.calls()

    def stop_all(self) -> None:
        """Cancel what runs."""
        for invocation in list(self.running.values()):
            self.canceller.stop(invocation, "cancel")

    # --- synchronous bodies ---

    def _run_sync(self, invocation: Invocation, bound: Bound) -> None:
        if invocation.doomed is not None:
            self._fail(invocation, invocation.doomed, ran=False)
            return
        invocation.started_ns = monotonic_ns()
        try:
            value = self._in_user(invocation, invocation.target.call, bound)
        except BaseException as error:
            self._fail(invocation, error)
            return
        if isinstance(value, _LOOPED):
            self._settle(invocation, value)
        else:
            self._succeed(invocation, value)

    def _in_user(self, invocation: Invocation, function: Callable[..., Any], *args: Any) -> Any:
        """Call user code with no running loop. Whatever it raises comes out, SystemExit included."""
        context = invocation.context
        assert context is not None
        asyncio._set_running_loop(None)
        try:
            if invocation.task is not None:  # its task has entered the context already
                return enter(invocation, function, *args)
            return context.run(enter, invocation, function, *args)
        except BaseException as error:
            invocation.raised = error
            raise
        finally:
            invocation.in_user = False
            asyncio._set_running_loop(self._loop)

    def _settle(self, invocation: Invocation, value: Any) -> None:
        """A plain function returned something that has yet to run."""
        if isinstance(value, GeneratorType):
            self._open_stream(invocation)
            invocation.reply.waiting(invocation)
            invocation.generator = value
            self._step(invocation)
        else:
            self._start_task(invocation, self._run_value(invocation, value))

    def _step(self, invocation: Invocation) -> None:
        """Advance a generator for one turn, or until its window closes or it ends."""
        window, generator = invocation.window, invocation.generator
        assert window is not None
        until = monotonic_ns() + _TURN_NS
        try:
            while True:
                item = self._in_user(invocation, next, generator, _END)
                if item is _END:
                    self._end_stream(invocation)
                    return
                self._emit(invocation, item)
                if not window.is_open:
                    window.on_open = partial(self._step_soon, invocation)
                    return
                if monotonic_ns() > until:
                    self._loop.call_soon(self._step, invocation)
                    return
        except BaseException as error:
            self._close_generator(invocation, error)
            self._fail(invocation, error)

    def _step_soon(self, invocation: Invocation) -> None:
        self._loop.call_soon(self._step, invocation)

    def _close_generator(self, invocation: Invocation, error: BaseException) -> None:
        """Let an unfinished generator clean up; it sees the reason it ends for, where it is suspended."""
        generator = invocation.generator
        if generator is None or generator.gi_frame is None or generator.gi_running:
            return
        ending = error if error is invocation.doomed else GeneratorExit()
        doomed, invocation.doomed = invocation.doomed, None
        try:
            self._in_user(invocation, generator.throw, ending)
            generator.close()
        except BaseException as raised:
            if raised is not ending and not isinstance(raised, StopIteration | GeneratorExit):
                log.debug("clean-up of a generator failed", exc_info=raised)
        finally:
            invocation.doomed = doomed

    # --- asynchronous bodies ---

    def _start_task(self, invocation: Invocation, body: Coroutine[Any, Any, None]) -> None:
        assert invocation.context is not None
        # Owned by `running` until its slot is cleared, which its own last line does.
        invocation.task = self._loop.create_task(body, context=invocation.context)
        invocation.reply.waiting(invocation)

    async def _run_async(self, invocation: Invocation, bound: Bound) -> None:
        if invocation.doomed is not None:
            self._fail(invocation, invocation.doomed, ran=False)
            return
        invocation.started_ns = monotonic_ns()
        invocation.stepped = True
        target = invocation.target
        try:
            try:
                invocation.in_user = True
                if invocation.doomed is not None:
                    raise invocation.doomed
                await target.prepare(bound)
                if target.is_async:
                    value = await target.call(bound)
                elif target.is_async_generator:
                    value = target.call(bound)
                else:
                    value = self._in_user(invocation, target.call, bound)
            except BaseException as error:
                invocation.raised = error
                raise
            finally:
                invocation.in_user = False
        except BaseException as error:
            self._fail(invocation, error)
            return
        if isinstance(value, GeneratorType):
            invocation.task = None  # from here on it is stepped from callbacks, which enter the context themselves
            self._loop.call_soon(self._settle, invocation, value)
        elif isinstance(value, _LOOPED):
            await self._run_value(invocation, value)
        else:
            self._succeed(invocation, value)

    async def _run_value(self, invocation: Invocation, value: Any) -> None:
        """Await a coroutine that a plain function returned, or drain an asynchronous generator."""
        invocation.stepped = True
        try:
            if isinstance(value, AsyncGeneratorType):
                await self._drain(invocation, value)
                return
            try:
                invocation.in_user = True
                if invocation.doomed is not None:
                    value.close()
                    raise invocation.doomed
                result = await value
            except BaseException as error:
                invocation.raised = error
                raise
            finally:
                invocation.in_user = False
        except BaseException as error:
            self._fail(invocation, error)
            return
        self._succeed(invocation, result)

    async def _drain(self, invocation: Invocation, generator: Any) -> None:
        window = self._open_stream(invocation)
        try:
            while True:
                try:
                    invocation.in_user = True
                    if invocation.doomed is not None:
                        raise invocation.doomed
                    item = await anext(generator, _END)
                except BaseException as error:
                    invocation.raised = error
                    raise
                finally:
                    invocation.in_user = False
                if item is _END:
                    break
                self._emit(invocation, item)
                if not window.is_open:
                    opened = self._loop.create_future()
                    window.on_open = partial(_open, opened)
                    await opened
        finally:
            await generator.aclose()
        self._end_stream(invocation)

    # --- outcomes ---

    def _open_stream(self, invocation: Invocation) -> Window:
        invocation.items = 0
        if invocation.window is None:
            invocation.window = Window()
        if not invocation.stream:
            invocation.collected = ItemList(MSGPACK if invocation.accept == MSGPACK else JSON)
        return invocation.window

    def _emit(self, invocation: Invocation, item: Any) -> None:
        _, data = self._encode(invocation, item, raw=False)
        invocation.items += 1
        if invocation.collected is not None:
            invocation.collected.add(data)
            return
        assert invocation.window is not None
        invocation.window.spend(len(data))
        invocation.reply.item(invocation, data)

    def _end_stream(self, invocation: Invocation) -> None:
        if invocation.doomed is not None:
            self._fail(invocation, invocation.doomed)
            return
        collected = invocation.collected
        media = MSGPACK if invocation.accept == MSGPACK else JSON
        run_us = invocation.run_us
        follow = self._finish(invocation, run_us)
        invocation.reply.succeeded(invocation, media, b"" if collected is None else collected.encoded(), run_us)
        self._account(invocation, "", run_us)
        if follow is not None:
            follow(invocation.slot)

    def _encode(self, invocation: Invocation, value: Any, *, raw: bool = True) -> tuple[str, bytes]:
        accept = invocation.accept
        if raw and accept == BINARY and isinstance(value, bytes | bytearray | memoryview):
            return BINARY, bytes(value)
        media = MSGPACK if accept == MSGPACK else JSON
        purpose = None if media == JSON else Purpose(invocation.target.id, "result", invocation.execution)
        return media, values.encode(value, media, signer=self._signer, context=purpose)

    def _succeed(self, invocation: Invocation, value: Any) -> None:
        if invocation.doomed is not None:
            self._fail(invocation, invocation.doomed)
            return
        run_us = invocation.run_us
        try:
            content_type, payload = self._encode(invocation, value)
        except Exception as error:
            self._fail(invocation, error)
            return
        follow = self._finish(invocation, run_us)
        invocation.reply.succeeded(invocation, content_type, payload, run_us)
        self._account(invocation, "", run_us)
        if follow is not None:
            follow(invocation.slot)

    def _fail(self, invocation: Invocation, error: BaseException, *, ran: bool = True) -> None:
        if invocation.doomed is not None and ran:
            error = invocation.doomed
        run_us = invocation.run_us
        code = USER_ERROR if error is invocation.raised and error is not invocation.doomed else None
        invocation.raised = None  # its traceback leads back here
        self.failures += 1
        follow = self._finish(invocation, run_us)
        invocation.reply.failed(invocation, as_failure(error), run_us, ran=ran, code=code)
        self._account(invocation, code or str(getattr(error, "code", USER_ERROR)), run_us)
        if follow is not None:
            follow(invocation.slot)

    def _account(self, invocation: Invocation, code: str, run_us: int) -> None:
        """What the session gave it knows about itself."""
        if self.on_peer_end is not None and not invocation.by_link:
            self.on_peer_end(invocation, code, run_us)

    def _finish(self, invocation: Invocation, run_us: int) -> Callable[[int], None] | None:
        """The slot is free again, or kept for who is returned; what comes after is telling.

        A child that user code forked and that came back here would be a second worker on the same link and sockets:
        it ends, as silently as the child of a plain `os.fork` that reaches its program's end.
        """
        if self._copied:
            os._exit(0)
        invocation.finished = True
        invocation.context = invocation.task = invocation.generator = None
        self.calls += 1
        self.by_execution.pop(invocation.execution, None)
        if self.running.pop(invocation.slot, None) is not None:
            self._record.clear(invocation.slot)
        if invocation.by_link and self.next_in is not None and (follow := self.next_in(run_us)) is not None:
            return follow
        self.give(invocation.slot, by_link=invocation.by_link)
        return None


def _open(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def as_failure(error: BaseException) -> BaseException:
    """What the caller is told. What would end or confuse the caller's own process arrives as a RemoteError."""
    if isinstance(error, Exception):
        return error
    name = type(error).__qualname__
    if isinstance(error, SystemExit):
        message = f"The function called sys.exit({error.code!r}). Return a value or raise an exception instead."
    elif isinstance(error, asyncio.CancelledError):
        message = "The function raised asyncio.CancelledError itself, though nobody cancelled the call."
    else:
        message = f"The function raised {name}: {error}"
    failure = RemoteError(message, type_name=f"{type(error).__module__}.{name}")
    failure.__traceback__ = error.__traceback__
    return failure
