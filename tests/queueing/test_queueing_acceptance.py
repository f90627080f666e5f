"""Async calls are accepted when their record is durable, and not a moment before."""

import pytest
from queueing_fixtures import Bench, SlowStore

from flashmesh.executions.store import StoreUnavailable
from flashmesh.functions.errors import ExecutionNotFound, FlashmeshError, QueueFull
from flashmesh.kit.ids import EndpointName, ExecutionId

FULL = StoreUnavailable("no space left on device")


def slow(**plan: object) -> tuple[Bench, SlowStore]:
    bench = Bench(SlowStore, **plan)
    assert isinstance(bench.store, SlowStore)
    return bench, bench.store


def test_an_async_call_joins_its_queue_and_is_accepted_when_its_record_is_durable() -> None:
    """Until the commit it is sent to nobody, though a worker is idle."""
    bench, store = slow()
    worker = bench.worker()
    told: list[FlashmeshError | None] = []
    bench.call("e1", kind="async", accepted=told.append)
    assert (worker.inbox, told, bench.dispatcher.is_accepted(ExecutionId("e1"))) == ([], [], False)
    store.commit()
    assert (told, bench.dispatcher.is_accepted(ExecutionId("e1"))) == ([None], True)
    worker.run_all()
    assert bench.client.result("e1") == b"1"


def test_a_store_without_a_disk_accepts_before_submit_returns() -> None:
    """`flash run` knows no waiting for commits."""
    bench = Bench()
    told: list[FlashmeshError | None] = []
    bench.call("e1", kind="async", accepted=told.append)
    assert (told, bench.waiting()) == ([None], 1)


def test_a_sync_call_waits_for_no_commit() -> None:
    """Nobody was promised that it outlives the server."""
    bench, _ = slow()
    worker = bench.worker()
    told: list[FlashmeshError | None] = []
    bench.call("e1", accepted=told.append)
    assert ([frame.execution for frame in worker.inbox], told) == (["e1"], [None])


def test_a_failed_commit_undoes_the_call() -> None:
    """Its caller is told; it runs nowhere; its id and its place in the backlog are free again."""
    bench, store = slow(backlog=1)
    worker = bench.worker()
    told: list[FlashmeshError | None] = []
    bench.call("e1", kind="async", accepted=told.append)
    store.commit(FULL)
    assert (told, bench.client.frames, worker.inbox) == ([FULL], [], [])
    with pytest.raises(ExecutionNotFound):
        bench.dispatcher.execution(ExecutionId("e1"))
    assert bench.dispatcher.in_flight == 0
    bench.call("e1", kind="async", accepted=told.append)
    store.commit()
    worker.run_all()
    assert bench.status("e1") == "SUCCESS"


def test_without_a_word_for_acceptance_the_answer_says_that_nothing_was_stored() -> None:
    """The caller's reply gets the error."""
    bench, store = slow()
    bench.call("e1", kind="async")
    store.commit(FULL)
    assert bench.client.error("e1") == ("STORE_UNAVAILABLE", "no space left on device")


def test_calls_that_wait_for_their_commit_count_in_the_backlog() -> None:
    """Also while a worker is idle; once one has run, another is welcome."""
    bench, store = slow(backlog=2)
    worker = bench.worker()
    bench.call("e1", kind="async")
    bench.call("e2", kind="async")
    with pytest.raises(QueueFull, match="backlog"):
        bench.call("e3", kind="async")
    store.commit()
    worker.run_all()
    bench.call("e3", kind="async")


def test_a_repeated_key_is_accepted_together_with_the_call_it_names() -> None:
    """Both when it is durable and when it cannot be stored."""
    for error in (None, FULL):
        bench, store = slow()
        told: list[FlashmeshError | None] = []
        bench.call("e1", kind="async", idempotency_key="k", accepted=told.append)
        again = bench.call("e2", kind="async", idempotency_key="k", accepted=told.append)
        assert (again.id, told) == ("e1", [])
        store.commit(error)
        assert told == [error, error]
        assert bench.client.frames == []


def test_a_call_cancelled_before_its_commit_never_runs() -> None:
    """It was accepted, and is cancelled."""
    bench, store = slow()
    worker = bench.worker()
    told: list[FlashmeshError | None] = []
    bench.call("e1", kind="async", accepted=told.append)
    bench.dispatcher.cancel(ExecutionId("e1"))
    store.commit()
    assert (bench.status("e1"), worker.inbox, told) == ("CANCELLED", [], [None])


def test_a_call_whose_endpoint_goes_before_its_commit_fails_with_it() -> None:
    """It does not wait for ever in a queue that nobody serves."""
    bench, store = slow()
    bench.call("e1", kind="async")
    bench.dispatcher.withdraw(EndpointName("m"))
    store.commit()
    assert bench.client.error("e1")[0] == "ENDPOINT_UNAVAILABLE"
    assert bench.dispatcher.in_flight == 0
