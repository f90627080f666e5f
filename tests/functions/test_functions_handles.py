"""Ways to call a decorated function, and that it looks like the function it stands for."""

import asyncio
import concurrent.futures
import functools
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from functions_fixtures import FakeCaller, installed

from flashmesh.functions.errors import QueueFull
from flashmesh.functions.remote import remote
from flashmesh.functions.resources import LiveServerless
from flashmesh.functions.streams import Stream

resource = LiveServerless(name="handles")
threads: list[int] = []


@remote(resource)
def add(a: int, b: int = 2) -> int:
    """Sum of two."""
    threads.append(threading.get_ident())
    return a + b


@remote(resource)
async def double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


@remote(resource)
def count(n: int) -> Iterator[int]:
    yield from range(n)


@remote(resource)
async def acount(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@remote(resource)
def fails() -> None:
    raise LookupError("as itself")


@remote(resource, local=True)
def stays(x: int) -> int:
    return x + 1


def wrapped_async() -> Any:
    @functools.wraps(double.__wrapped__)
    def logged(x: int) -> Any:
        return double.__wrapped__(x)

    return remote(resource)(logged)


@pytest.mark.parametrize("function", [add, double])
def test_a_call_gives_a_real_coroutine_for_def_and_async_def(function: Any) -> None:
    with installed(FakeCaller()):
        call = function(1)
        assert inspect.iscoroutine(call)
        assert asyncio.run(call) == "answered"


def test_a_call_carries_the_arguments_as_the_user_passed_them() -> None:
    with installed(FakeCaller()) as caller:
        asyncio.run(add(1, b=5))
        add.call(2)
    first, second = caller.seen
    assert (first.args, first.kwargs, first.method, first.init) == ((1,), {"b": 5}, None, None)
    assert first.declaration is add.__flash__
    assert (second.args, second.kwargs) == ((2,), {})


def test_in_a_process_that_runs_it_the_body_runs_there() -> None:
    with installed(FakeCaller(local=True)) as caller:
        assert asyncio.run(add(1)) == 3
        assert asyncio.run(double(4)) == 8
        assert add.call(1, b=1) == 2
        assert double.call(5) == 10
        assert asyncio.run(add(1, b=7)) == 8
    assert caller.seen == []


def test_where_a_body_runs_is_asked_once_and_remembered() -> None:
    with installed(FakeCaller(local=True)) as caller:
        for _ in range(5):
            asyncio.run(double(1))
    assert caller.asked == 1


def test_another_caller_is_asked_again() -> None:
    """A forked process installs its own."""
    with installed(FakeCaller(local=True)):
        assert asyncio.run(double(1)) == 2
    with installed(FakeCaller()):
        assert asyncio.run(double(1)) == "answered"


def test_a_sync_body_runs_in_the_thread_that_awaits_it() -> None:
    threads.clear()
    with installed(FakeCaller(local=True)):
        asyncio.run(add(1))
    assert threads == [threading.get_ident()]


def test_an_exception_travels_as_itself() -> None:
    with installed(FakeCaller(local=True)):
        with pytest.raises(LookupError, match="as itself"):
            asyncio.run(fails())
        with pytest.raises(LookupError):
            fails.call()


def test_local_runs_the_plain_body_whatever_the_caller_says() -> None:
    with installed(FakeCaller()):
        assert add.local(1) == 3
        assert asyncio.run(double.local(2)) == 4
        assert list(count.local(2)) == [0, 1]


def test_local_true_never_leaves_the_process() -> None:
    with installed(FakeCaller()) as caller:
        assert asyncio.run(stays(1)) == 2
        assert stays.call(1) == 2
        assert stays.spawn(1).call.result(5) == 2
        assert list(stays.map([1, 2])) == [2, 3]
    assert caller.seen == []


def test_local_true_needs_no_caller_at_all() -> None:
    with installed(None):
        assert asyncio.run(stays(1)) == 2


def test_a_plain_function_that_returns_a_coroutine_is_awaited() -> None:
    function = wrapped_async()
    with installed(FakeCaller(local=True)):
        assert asyncio.run(function(2)) == 4
        assert function.call(2) == 4


def test_a_blocking_call_inside_a_running_loop_still_works() -> None:
    async def program() -> Any:
        return double.call(3), list(acount.call(2))

    with installed(FakeCaller(local=True)):
        assert asyncio.run(program()) == (6, [0, 1])


@pytest.mark.parametrize("function", [count, acount])
def test_a_generator_streams_here(function: Any) -> None:
    async def program() -> Any:
        return [item async for item in function(3)], await function(2)

    with installed(FakeCaller(local=True)):
        assert asyncio.run(program()) == ([0, 1, 2], [0, 1])
        assert list(function.call(3)) == [0, 1, 2]


@pytest.mark.parametrize("function", [count, acount])
def test_a_generator_streams_from_elsewhere(function: Any) -> None:
    async def program() -> Any:
        return [item async for item in function(3)], await function(3)

    with installed(FakeCaller(lambda call: range(10, 10 + call.args[0]))) as caller:
        assert asyncio.run(program()) == ([10, 11, 12], [10, 11, 12])
        assert list(function.call(2)) == [10, 11]
    assert caller.closed_streams == 2


def test_a_stream_can_be_run_and_made_a_task() -> None:
    async def program() -> Any:
        return await asyncio.create_task(count(2)), await asyncio.gather(count(1), acount(1))

    with installed(FakeCaller(local=True)):
        assert asyncio.run(count(3)) == [0, 1, 2]
        assert asyncio.run(program()) == ([0, 1], [[0], [0]])


def test_a_cancelled_stream_closes_the_generator() -> None:
    closed = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                await asyncio.sleep(0)
                yield 1
        finally:
            closed.append(True)

    function = remote(resource, local=True)(endless)

    async def program() -> None:
        task = asyncio.create_task(function())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(program())
    assert closed == [True]


def test_closing_a_blocking_stream_early_closes_the_generator() -> None:
    closed = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    items = remote(resource, local=True)(numbers).call()
    assert next(items) == 1
    items.close()
    assert closed == [True]


def test_a_stream_that_nobody_reads_runs_nothing() -> None:
    with installed(FakeCaller()) as caller:
        stream = count(3)
        assert isinstance(stream, Stream)
        stream.close()
    assert caller.seen == []


def test_a_handle_looks_like_the_function() -> None:
    assert (add.__name__, add.__qualname__, add.__module__, add.__doc__) == ("add", "add", __name__, "Sum of two.")
    assert str(inspect.signature(add)) == "(a: int, b: int = 2) -> int"
    assert inspect.get_annotations(add) == {"a": int, "b": int, "return": int}
    assert add.__wrapped__ is add.__flash__.target


def test_a_handle_counts_as_a_coroutine_function() -> None:
    """Web frameworks and test runners ask."""
    assert inspect.iscoroutinefunction(add)
    assert inspect.iscoroutinefunction(double)
    assert inspect.isfunction(add)
    assert not inspect.iscoroutinefunction(add.__wrapped__)


def test_a_handle_pickles_by_reference() -> None:
    assert pickle.loads(pickle.dumps(add)) is add
    assert pickle.loads(pickle.dumps(count)) is count


def test_spawn_gives_a_job_even_where_the_body_could_run() -> None:
    """A spawned call must survive the process that made it."""
    with installed(FakeCaller(local=True)) as caller:
        job = add.spawn(1, b=3)
        assert job.id == "job-1"
        assert job.call.result() == "answered"
    assert caller.seen[0].kwargs == {"b": 3}


def _full_at_first(times: int, retry_after: float) -> Any:
    left = [times]

    def answer(call: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise QueueFull(retry_after=retry_after)
        return call.args[0]

    return answer


def test_spawn_in_plain_code_obeys_a_full_queue() -> None:
    with installed(FakeCaller(_full_at_first(2, 0.001))) as caller:
        assert add.spawn(1).call.result() == 1
    assert len(caller.seen) == 3


def test_spawn_gives_up_on_a_queue_that_would_stay_full_too_long() -> None:
    with installed(FakeCaller(_full_at_first(1, 10_000))), pytest.raises(QueueFull):
        add.spawn(1)


def test_spawn_in_a_coroutine_raises_queue_full_at_once() -> None:
    """Waiting there would stop the loop."""

    async def program() -> None:
        add.spawn(1)

    with installed(FakeCaller(_full_at_first(1, 0.001))), pytest.raises(QueueFull):
        asyncio.run(program())


def test_cancelling_the_coroutine_reaches_the_caller() -> None:
    cancelled = []

    class Slow(FakeCaller):
        async def call(self, call: Any) -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(call.args)
                raise

    async def program() -> None:
        task = asyncio.create_task(add(1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with installed(Slow()):
        asyncio.run(program())
    assert cancelled == [(1,)]


def test_many_threads_may_call_at_once() -> None:
    with installed(FakeCaller(lambda call: call.args[0])), concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(add.call, range(100))) == list(range(100))
