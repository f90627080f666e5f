"""Job: asking for an accepted call's state, result and items, from coroutines and from plain code."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from functions_fixtures import FakeJobBackend

from flashmesh.functions.errors import Cancelled, LinkLost, TimedOut, WaitTimedOut
from flashmesh.functions.jobs import FINAL, WORDS, Job
from flashmesh.functions.local_jobs import start_local_job


def job(*words: str, value: Any = None, items: tuple[Any, ...] = ()) -> tuple[Job, FakeJobBackend]:
    backend = FakeJobBackend(list(words) or ["SUCCESS"], value, items)
    return Job("id-1", backend), backend


def test_a_finished_job_brings_its_output_along() -> None:
    async def program() -> None:
        one, _ = job("QUEUED", "RUNNING", "SUCCESS", value=42)
        assert (one.done, one.output, one.error) == (False, None, None)
        assert await one.status() == "IN_QUEUE"
        assert await one.status() == "IN_PROGRESS"
        assert not one.done
        assert await one.status() == "COMPLETED"
        assert (one.done, one.output, one.error) == (True, 42, None)

    asyncio.run(program())


def test_plain_code_asks_the_same_under_call() -> None:
    one, _ = job("QUEUED", "SUCCESS", value=42)
    assert one.call.status() == "IN_QUEUE"
    assert one.call.status() == "COMPLETED"
    assert one.call.result() == 42
    assert one.call.wait() is one
    assert one.output == 42


def test_a_result_is_fetched_once() -> None:
    one, backend = job(value=[1])
    assert one.call.result() is one.call.result()
    assert asyncio.run(one.result()) == [1]
    assert backend.results == 1


def test_a_failure_is_raised_as_itself_by_result_and_shown_by_error() -> None:
    one, _ = job("ERROR", value=LookupError("no such thing"))
    assert one.call.status() == "FAILED"
    assert one.error == "no such thing"
    with pytest.raises(LookupError):
        one.call.result()
    with pytest.raises(LookupError):
        asyncio.run(one.result())
    assert one.call.wait().done


@pytest.mark.parametrize(
    ("word", "error", "says"), [("TIMEOUT", TimedOut(), "TIMED_OUT"), ("CANCELLED", Cancelled(), "CANCELLED")]
)
def test_a_job_that_was_stopped_says_how(word: str, error: Exception, says: str) -> None:
    one, _ = job(word, value=error)
    assert one.call.status() == says
    with pytest.raises(type(error)):
        asyncio.run(one.result())


def test_waiting_too_long_ends_only_the_wait() -> None:
    one, backend = job(value=WaitTimedOut())
    with pytest.raises(TimeoutError):
        one.call.result(timeout=0.01)
    assert not one.done
    backend.value = "later"
    assert one.call.result() == "later"


def test_a_lost_connection_is_not_the_job_s_end() -> None:
    one, backend = job(value=LinkLost())
    with pytest.raises(LinkLost):
        asyncio.run(one.wait())
    assert not one.done
    backend.value = 1
    assert asyncio.run(one.result()) == 1


def test_a_job_can_be_cancelled() -> None:
    one, backend = job("RUNNING", "CANCELLED", value=Cancelled())
    assert one.call.status() == "IN_PROGRESS"
    assert one.call.cancel() is one
    assert backend.cancelled == ["id-1"]
    assert repr(one) == "Job(id='id-1', status='CANCELLED')"
    other, backend = job("CANCELLED", value=Cancelled())
    asyncio.run(other.cancel())
    assert backend.cancelled == ["id-1"]


def test_a_job_streams_its_items() -> None:
    async def program() -> Any:
        one, _ = job(items=(1, 2))
        return [item async for item in one.stream()]

    assert asyncio.run(program()) == [1, 2]
    one, _ = job(items=(1, 2))
    assert list(one.call.stream()) == [1, 2]


def test_every_state_of_an_execution_has_a_word() -> None:
    assert set(WORDS) == {"QUEUED", "RUNNING", "SUCCESS", "ERROR", "TIMEOUT", "CANCELLED"}
    assert set(WORDS.values()) >= FINAL


# Jobs of functions that stay in the process.


def test_a_local_job_runs_beside_its_program() -> None:
    go = threading.Event()

    def body() -> str:
        assert go.wait(10)
        return "done"

    one = start_local_job(body)
    with pytest.raises(WaitTimedOut):
        one.call.result(timeout=0.01)
    with pytest.raises(WaitTimedOut):
        asyncio.run(one.result(timeout=0.01))
    go.set()
    assert asyncio.run(one.result(timeout=10)) == "done"
    assert one.call.status() == "COMPLETED"


def test_a_local_job_awaits_a_coroutine() -> None:
    async def body() -> str:
        await asyncio.sleep(0)
        return "awaited"

    assert start_local_job(body).call.result(10) == "awaited"


def test_a_local_job_s_exception_is_raised_as_itself() -> None:
    def body() -> None:
        raise LookupError("gone")

    one = start_local_job(body)
    with pytest.raises(LookupError):
        one.call.result(10)
    with pytest.raises(LookupError):
        asyncio.run(start_local_job(body).result(10))
    assert one.error == "gone"


def _numbers() -> Iterator[int]:
    yield from range(3)


async def _anumbers() -> AsyncIterator[int]:
    for x in range(3):
        await asyncio.sleep(0)
        yield x


@pytest.mark.parametrize("body", [_numbers, _anumbers])
def test_a_local_job_streams_each_item_once(body: Any) -> None:
    async def program() -> Any:
        return [item async for item in start_local_job(body).stream()]

    assert asyncio.run(program()) == [0, 1, 2]
    one = start_local_job(body)
    assert list(one.call.stream()) == [0, 1, 2]
    assert one.call.result(10) == [0, 1, 2]


def test_a_cancelled_local_generator_ends_at_its_next_item() -> None:
    go = threading.Event()
    ended = threading.Event()

    def body() -> Iterator[int]:
        try:
            yield 1
            assert go.wait(10)
            yield 2
            yield 3
        finally:
            ended.set()

    one = start_local_job(body)
    items = one.call.stream()
    assert next(items) == 1
    assert one.call.cancel().error is not None
    go.set()
    assert ended.wait(10)
    with pytest.raises(Cancelled):
        list(items)
    assert asyncio.run(one.status()) == "CANCELLED"
    asyncio.run(one.cancel())
