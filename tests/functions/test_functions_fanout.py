"""`map` and `starmap`: bounded concurrency, order, failures, full queues."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from functions_fixtures import FakeCaller, installed
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import DeclarationError, QueueFull
from flashmesh.functions.remote import remote
from flashmesh.functions.resources import LiveServerless
from flashmesh.functions.window import Outcome, Window

resource = LiveServerless(name="fanout", workersMax=3)


@remote(resource)
def work(x: int, y: int = 0) -> int:
    return 10 * x + y


@remote(resource)
def items(n: int) -> Iterator[int]:
    yield from range(n)


class Gate(FakeCaller):
    """Notes how many calls run at once; the call with argument `slow` ends when all others have."""

    def __init__(self, slow: int | None = None, others: int = 0) -> None:
        super().__init__()
        self.slow = slow
        self.others = others
        self.running = self.most = self.ended = 0
        self.all_ended = asyncio.Event()

    async def call(self, call: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        if call.args[0] == self.slow:
            await self.all_ended.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        self.running -= 1
        self.ended += 1
        if self.ended == self.others:
            self.all_ended.set()
        return call.args[0]


def test_results_come_in_order_with_at_most_so_many_running() -> None:
    async def program() -> Any:
        return await work.map(range(20), concurrency=4)

    with installed(Gate()) as caller:
        assert asyncio.run(program()) == list(range(20))
    assert caller.most == 4


def test_results_can_be_taken_as_they_come() -> None:
    async def program() -> list[int]:
        return [x async for x in work.map(range(4), concurrency=4, ordered=False)]

    with installed(Gate(slow=0, others=3)):
        assert asyncio.run(program())[-1] == 0


def test_a_slow_first_item_does_not_hold_up_the_others() -> None:
    async def program() -> list[int]:
        return await work.map(range(9), concurrency=4)

    with installed(Gate(slow=0, others=8)):
        assert asyncio.run(program()) == list(range(9))


def test_plain_code_maps_too() -> None:
    with installed(FakeCaller(lambda call: call.args[0] * 2)):
        assert list(work.map(range(10), concurrency=3)) == [2 * x for x in range(10)]
        assert sorted(work.map(range(10), concurrency=3, ordered=False)) == [2 * x for x in range(10)]


def test_plain_code_runs_at_most_so_many_threads() -> None:
    barrier = threading.Barrier(3)

    def answer(call: Any) -> Any:
        barrier.wait(5)  # three at a time, or this breaks
        return call.args[0]

    with installed(FakeCaller(answer)):
        assert list(work.map(range(9), concurrency=3)) == list(range(9))


def test_where_bodies_run_here_plain_code_maps_in_its_own_thread() -> None:
    with installed(FakeCaller(local=True)):
        assert list(work.map([1, 2])) == [10, 20]


def test_starmap_unpacks_each_item() -> None:
    with installed(FakeCaller(local=True)):
        assert list(work.starmap([(1, 2), [3]])) == [12, 30]


def test_a_map_of_a_generator_function_gives_lists() -> None:
    async def program() -> Any:
        return await items.map([1, 2])

    for caller in (FakeCaller(local=True), FakeCaller(lambda call: range(call.args[0]))):
        with installed(caller):
            assert asyncio.run(program()) == [[0], [0, 1]]
            assert list(items.map([1, 2])) == [[0], [0, 1]]


def _odd_fails(call: Any) -> Any:
    if call.args[0] % 2:
        raise ValueError(call.args[0])
    return call.args[0]


def test_the_first_exception_ends_it_at_its_place() -> None:
    async def program() -> list[int]:
        results = aiter(work.map(range(6), concurrency=2))
        seen = [await anext(results)]
        with pytest.raises(ValueError, match="1"):
            await anext(results)
        return seen

    with installed(FakeCaller(_odd_fails)):
        assert asyncio.run(program()) == [0]
        results = iter(work.map(range(6), concurrency=2))
        assert next(results) == 0
        with pytest.raises(ValueError, match="1"):
            next(results)


def test_exceptions_can_be_among_the_results() -> None:
    async def program() -> Any:
        return await work.map(range(3), return_exceptions=True)

    with installed(FakeCaller(_odd_fails)):
        results = asyncio.run(program())
        assert (results[0], type(results[1]), results[2]) == (0, ValueError, 2)
        assert [type(x) for x in work.map(range(2), return_exceptions=True)] == [int, ValueError]


def test_a_full_queue_is_obeyed_and_nothing_is_lost() -> None:
    """Every item is refused twice before it is accepted."""
    refusals: dict[int, int] = {}

    def answer(call: Any) -> Any:
        x = call.args[0]
        refusals[x] = refusals.get(x, 0) + 1
        if refusals[x] < 3:
            raise QueueFull(retry_after=0.001)
        return x

    async def program() -> Any:
        return await work.map(range(10), concurrency=5)

    with installed(FakeCaller(answer)):
        assert asyncio.run(program()) == list(range(10))
        refusals.clear()
        assert list(work.map(range(10), concurrency=5)) == list(range(10))


def test_a_queue_full_raised_by_the_body_itself_is_not_repeated() -> None:
    calls = []

    def answer(call: Any) -> Any:
        calls.append(call)
        full = QueueFull(retry_after=0.001)
        full.remote_traceback = "Traceback…"  # type: ignore[attr-defined]
        raise full

    async def program() -> Any:
        return await work.map([1])

    with installed(FakeCaller(answer)):
        with pytest.raises(QueueFull):
            asyncio.run(program())
        with pytest.raises(QueueFull):
            list(work.map([1]))
    assert len(calls) == 2


def test_a_queue_full_out_of_a_body_that_runs_here_is_not_repeated() -> None:
    runs = []

    def body(x: int) -> None:
        runs.append(x)
        raise QueueFull(retry_after=0.001)

    function = remote(resource, local=True)(body)

    async def program() -> Any:
        return await function.map([1])

    with pytest.raises(QueueFull):
        list(function.map([1]))
    with pytest.raises(QueueFull):
        asyncio.run(program())
    assert runs == [1, 1]


def test_leaving_early_cancels_what_runs() -> None:
    cancelled = []

    class Slow(FakeCaller):
        async def call(self, call: Any) -> Any:
            if call.args[0] == 0:
                return 0
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(call.args[0])
                raise

    async def program() -> None:
        results = aiter(work.map(range(3), concurrency=3))
        assert await anext(results) == 0
        await results.aclose()

    with installed(Slow()):
        asyncio.run(program())
    assert sorted(cancelled) == [1, 2]


def test_a_map_over_an_iterator_reads_it_as_it_goes() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for x in range(1000):
            read.append(x)
            yield x

    async def program() -> None:
        results = aiter(work.map(numbers(), concurrency=2))
        await anext(results)
        await results.aclose()

    with installed(FakeCaller(lambda call: call.args[0])):
        asyncio.run(program())
    assert len(read) < 20


def test_a_map_can_be_gone_through_again() -> None:
    with installed(FakeCaller(local=True)):
        results = work.map([1, 2])
        assert list(results) == list(results) == [10, 20]


def test_no_concurrency_is_refused() -> None:
    with pytest.raises(DeclarationError, match="at least 1"):
        work.map([1], concurrency=0)


@given(st.permutations(range(12)), st.integers(1, 5), st.booleans())
def test_the_window_gives_every_outcome_once_and_keeps_its_bounds(
    finishing: list[int], concurrency: int, ordered: bool
) -> None:
    """Items end in any order; those not yet started end when they have been."""
    window = Window(concurrency, ordered=ordered)
    started: list[int] = []
    given_out: list[int] = []
    waiting = iter(range(12))
    left = list(finishing)
    while left or len(given_out) < 12:
        while window.has_room() and (index := next(waiting, None)) is not None:
            window.start()
            started.append(index)
        assert window.running <= concurrency
        index = next(index for index in left if index in started)
        left.remove(index)
        given_out += [outcome.value for outcome in window.finish(index, Outcome(index))]
    assert sorted(given_out) == list(range(12))
    assert not ordered or given_out == list(range(12))
