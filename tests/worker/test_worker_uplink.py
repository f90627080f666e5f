"""A worker's link: outcomes that are kept until they are acknowledged, and calls that wait behind those that run."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_fixtures import Session, Worker, call, eventually, invoke, link_of, outcome, post, receive, session, started

from flashmesh.wire.codec import encode
from flashmesh.wire.frames import Ack, Cancel, Chunk, Credit, Discard, Drain, Error, Invoke, Result, Started, Summary
from flashmesh.worker import held as held_module
from flashmesh.worker.ahead import FEWEST_SAMPLES, MOST, SLOW_US, RunTimes
from flashmesh.worker.held import Held

SOURCE = """
    import asyncio, os, time
    from flashmesh import LiveServerless, remote

    resource = LiveServerless(name="own")

    @remote(resource)
    def echo(x):
        return x

    @remote(resource)
    def until_file(path):
        while not os.path.exists(path):
            time.sleep(0.002)
        return "finished"

    @remote(resource)
    def leaves(path):
        open(path, "w").close()

    @remote(resource)
    async def until_file_async(path):
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
        return "finished"

    @remote(resource)
    async def counts(path):
        yield 1
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
        yield 2

    @remote(resource)
    def naps():
        time.sleep(0.01)

    @remote(resource)
    def fails():
        raise ValueError("no")
    """
LATER = {"mode": "async"}


@pytest.fixture
def here() -> Iterator[Session]:
    with session() as made:
        yield made


def quick(worker: Worker) -> None:
    """Let it find out that its functions are fast: until it asks for five calls ahead, on a machine with other work."""
    for number in range(5000):
        invoke(worker, "own.echo", number, execution=f"quick{number}")
        if receive(worker, Result).free >= 6:
            return
    raise AssertionError("it never asked for calls ahead")


def heard(worker: Worker, quiet_s: float = 0.2) -> list[object]:
    """Every frame that comes until nothing does."""
    found: list[object] = []
    while True:
        try:
            found.append(link_of(worker).receive(quiet_s))
        except TimeoutError:
            return found


def sockets(worker: Worker) -> int:
    """How many sockets the process has open."""
    found = Path(f"/proc/{worker.process.pid}/fd").iterdir()
    return sum(1 for entry in found if os.path.islink(entry) and os.readlink(entry).startswith("socket:"))  # noqa: PTH114, PTH115


# What is kept


def test_an_outcome_of_an_async_call_is_said_again_until_it_is_acknowledged(here: Session) -> None:
    """A session that comes back is told what is held, then gets it; after its ACK it is gone."""
    worker = here.worker(SOURCE)
    invoke(worker, "own.echo", 5, execution="e1", attempt=3, meta=LATER)
    first = receive(worker, Result)
    link_of(worker).close()
    worker.link, hello, _ = here.accept()
    assert (hello.held, hello.running) == (["e1@3"], [])
    again = receive(worker, Result)
    assert (again.execution, again.attempt, again.payload) == ("e1", 3, first.payload)
    link_of(worker).send(Ack(["e1"]))
    assert call(worker, "own.echo", 6, execution="e2") == 6
    link_of(worker).close()
    worker.link, hello, _ = here.accept()
    assert hello.held == []


def test_calls_with_an_idempotency_key_are_kept_and_failures_too_but_not_plain_calls(here: Session) -> None:
    """A plain call's caller is gone with its session."""
    worker = here.worker(SOURCE)
    invoke(worker, "own.fails", execution="keyed", meta={"idempotency_key": "k"})
    receive(worker, Error)
    invoke(worker, "own.echo", 1, execution="plain")
    receive(worker, Result)
    link_of(worker).close()
    worker.link, hello, _ = here.accept()
    assert hello.held == ["keyed@0"]
    assert receive(worker, Error).code == "USER_ERROR"


def test_a_call_that_ends_while_the_session_is_away_is_answered_to_the_next(here: Session) -> None:
    """Whatever kind of call it is: the session may have lost nothing but its connection."""
    worker = here.worker(SOURCE)
    go = here.folder / "go"
    invoke(worker, "own.until_file_async", str(go), execution="e1", attempt=1)
    started(worker)
    here.stop_listening()
    connected = sockets(worker)
    link_of(worker).close()
    eventually(lambda: sockets(worker) < connected, "the worker seeing the end of its connection")
    go.touch()
    eventually(lambda: worker.record.head().free == 1, "the end of the call")
    here.listen_again()
    worker.link, hello, ready = here.accept()
    assert (hello.held, hello.running, ready.free) == (["e1@1"], [], 1)
    assert outcome(worker) == "finished"


def test_a_stream_ends_with_the_link_its_items_went_by(here: Session) -> None:
    """The next session would miss those: it is cancelled, neither claimed nor answered, and its slot is free again."""
    worker = here.worker(SOURCE)
    invoke(worker, "own.counts", str(here.folder / "never"), execution="e1", meta=LATER)
    receive(worker, Chunk)
    link_of(worker).close()
    worker.link, hello, _ = here.accept()
    assert (hello.running, hello.held) == ([], [])
    eventually(lambda: worker.record.head().free == 1, "the end of the stream")
    assert not [frame for frame in heard(worker) if isinstance(frame, Result | Error)]


def test_a_worker_that_holds_too_much_takes_no_more_calls(here: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so with every answer and refuses what comes all the same; an ACK opens it again."""
    held = Held()
    monkeypatch.setattr(held_module, "MOST_OUTCOMES", 2)
    held.add(Result("e1"))
    assert not held.full
    held.add(Error("e2", "USER_ERROR"))
    assert held.full
    held.drop(["e1"])
    assert not held.full and held.refs() == ["e2@0"]
    worker = here.worker(SOURCE)
    big = "x" * (40 * 1024 * 1024)
    for name, free in (("big1", 1), ("big2", 0)):
        invoke(worker, "own.echo", big, execution=name, meta=LATER)
        assert receive(worker, Result).free == free
    invoke(worker, "own.echo", 1, execution="e3")
    refused = receive(worker, Error)
    assert (refused.execution, refused.code, refused.ran) == ("e3", "BUSY", False)
    link_of(worker).send(Ack(["big1"]))
    assert receive(worker, Credit).free == 1
    assert call(worker, "own.echo", 2, execution="e4") == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2000), st.booleans())))
def test_held_outcomes_are_counted_right(steps: list[tuple[int, int, bool]]) -> None:
    """For any order of outcomes and acknowledgements, repeated ones included."""
    held, model = Held(), dict[str, int]()
    for number, size, acknowledged in steps:
        name = f"e{number}"
        if acknowledged:
            held.drop([name])
            model.pop(name, None)
        else:
            held.add(Result(name, payload=bytes(size)))
            model.pop(name, None)
            model[name] = size
    assert [frame.execution for frame in held] == list(model)
    assert held._bytes == sum(model.values()) + 256 * len(model)


def test_a_leaving_worker_waits_for_the_acknowledgement(here: Session) -> None:
    """The outcome of its last call must not leave with it, not even when the session was away at its end."""
    worker = here.worker(SOURCE)
    invoke(worker, "own.echo", 7, execution="e1", meta=LATER)
    receive(worker, Result)
    link_of(worker).send(Drain())
    receive(worker, Drain)
    link_of(worker).close()
    worker.link, hello, ready = here.accept()
    assert (hello.held, hello.free, ready.free) == (["e1@0"], 0, 0)
    assert outcome(worker) == 7
    link_of(worker).send(Ack(["e1"]))
    link_of(worker).close()
    assert worker.exit_status() == 0


# Calls ahead


@given(st.lists(st.integers(0, SLOW_US), min_size=FEWEST_SAMPLES, max_size=200))
def test_what_is_asked_for_ahead_is_two_milliseconds_of_work(runs: list[int]) -> None:
    """By the 95th percentile of the last 64 run times, within eight calls; 64 at most."""
    times = RunTimes()
    for run_us in runs:
        times.add(run_us)
    recent = [sorted(runs[max(0, end - 64) : end]) for end in range(max(16, len(runs) - 7), len(runs) + 1)]
    possible = {min(MOST, 2000 // max(1, some[len(some) * 95 // 100])) for some in recent}
    assert times.allowed in possible


def test_nothing_is_asked_for_ahead_before_it_is_known_that_calls_are_fast() -> None:
    """Fewer than 16 run times, a slow call, or a worker that takes one call in its life."""
    times, job = RunTimes(), RunTimes(enabled=False)
    for _ in range(FEWEST_SAMPLES - 1):
        times.add(10)
    assert times.allowed == 0
    for _ in range(8):
        times.add(10)
        job.add(10)
    assert times.allowed == MOST
    times.add(SLOW_US + 1)
    assert times.allowed == 0
    for _ in range(FEWEST_SAMPLES - 1):
        times.add(10)
        job.add(10)
    assert (times.allowed, job.allowed) == (0, 0)


def test_fast_calls_are_sent_ahead_and_run_in_their_order(here: Session) -> None:
    """One slot, many calls at hand; a call is begun only after the one before it has ended."""
    worker = here.worker(SOURCE)
    quick(worker)
    for number in range(5):
        invoke(worker, "own.echo", number, execution=f"e{number}")
    steps = [
        step
        for frame in heard(worker)
        if isinstance(frame, Started | Result)
        for step in ((type(frame), frame.execution), (Started, getattr(frame, "begins", "")))
        if step[1]
    ]
    assert steps == [(kind, f"e{number}") for number in range(5) for kind in (Started, Result)]


def test_a_worker_in_job_mode_asks_for_nothing_ahead(here: Session) -> None:
    """It takes one call."""
    worker = here.worker(SOURCE, context={"one_shot": True})
    invoke(worker, "own.echo", 1, execution="e1")
    assert receive(worker, Result).free == 0


def test_a_discarded_call_never_begins(here: Session) -> None:
    """What the session said while a call held the thread is heard before the next one's first line."""
    worker = here.worker(SOURCE)
    quick(worker)
    go, trace = here.folder / "go", here.folder / "trace"
    invoke(worker, "own.until_file", str(go), execution="slow")
    invoke(worker, "own.leaves", str(trace), execution="gone", attempt=1)
    assert started(worker, "slow"), "a call is begun before its body runs, whatever waits behind it"
    link_of(worker).send(Discard("gone", 1))
    go.touch()
    frames = heard(worker)
    assert {frame.execution for frame in frames if isinstance(frame, Result)} == {"slow"}
    assert not trace.exists()


def test_a_waiting_call_can_be_cancelled(here: Session) -> None:
    """It is answered as not run. What came in one piece with the call before it is no sooner begun for that."""
    worker = here.worker(SOURCE)
    quick(worker)
    go = here.folder / "go"
    slow = Invoke("slow", "own.until_file", 1, payload=json.dumps({"path": str(go)}).encode())
    link_of(worker)._sock.sendall(encode(slow) + encode(Invoke("e1", "own.echo", 1, payload=b'{"x":1}')))
    started(worker, "slow")
    link_of(worker).send(Cancel("e1"))
    go.touch()
    answer = receive(worker, Error, execution="e1")
    assert (answer.code, answer.ran) == ("CANCELLED", False)


def test_a_call_that_is_stopped_before_its_first_line_gives_its_slot_back(here: Session) -> None:
    """The cancel comes with the call, in one piece: its body never runs, and the next call does."""
    worker = here.worker(SOURCE)
    for function in ("own.until_file_async", "own.until_file"):
        both = Invoke("gone", function, 1, payload=b'{"path":"/nowhere"}'), Cancel("gone")
        link_of(worker)._sock.sendall(b"".join(map(encode, both)))
        answer = receive(worker, Error, execution="gone")
        assert (answer.code, answer.ran, answer.free) == ("CANCELLED", False, 1)
        assert call(worker, "own.echo", 7) == 7


def test_a_cancel_of_another_attempt_leaves_a_call_alone(here: Session) -> None:
    """The call was taken back from here, and has been sent here again since."""
    worker = here.worker(SOURCE)
    go = here.folder / "go"
    invoke(worker, "own.until_file_async", str(go), execution="e1", attempt=2)
    started(worker)
    link_of(worker).send(Cancel("e1", attempt=1))
    go.touch()
    assert outcome(worker) == "finished"


def test_after_a_slow_call_nothing_more_is_asked_for_and_what_comes_is_refused(here: Session) -> None:
    """BUSY: certainly not run, the session gives it to another worker."""
    worker = here.worker(SOURCE)
    quick(worker)
    invoke(worker, "own.naps", execution="slow")
    assert receive(worker, Result).free == 1
    again = here.folder / "again"
    invoke(worker, "own.until_file_async", str(again), execution="runs")
    started(worker, "runs")
    invoke(worker, "own.echo", 1, execution="e1")
    refused = receive(worker, Error, execution="e1")
    assert (refused.code, refused.ran, refused.free) == ("BUSY", False, 0)
    again.touch()
    assert outcome(worker, execution="runs") == "finished"


def test_a_worker_that_leaves_gives_back_what_waits(here: Session) -> None:
    """None of it was begun."""
    worker = here.worker(SOURCE)
    quick(worker)
    go = here.folder / "go"
    invoke(worker, "own.until_file_async", str(go), execution="slow")
    invoke(worker, "own.echo", 1, execution="e1")
    started(worker, "slow")
    link_of(worker).send(Drain())
    refused = receive(worker, Error, execution="e1")
    assert (refused.code, refused.ran) == ("BUSY", False)
    go.touch()
    assert outcome(worker, execution="slow") == "finished"
    link_of(worker).close()
    assert worker.exit_status() == 0


def test_calls_that_wait_are_forgotten_with_the_link_they_came_by(here: Session) -> None:
    """The session that comes back gives them again, to whom it likes."""
    worker = here.worker(SOURCE)
    quick(worker)
    go = here.folder / "go"
    invoke(worker, "own.until_file_async", str(go), execution="slow")
    invoke(worker, "own.echo", 1, execution="e1")
    started(worker, "slow")
    link_of(worker).close()
    worker.link, hello, _ = here.accept()
    assert hello.running == ["slow@0"]
    go.touch()
    assert {frame.execution for frame in heard(worker) if isinstance(frame, Started | Result)} == {"slow"}


# Calls of peers


def test_calls_of_peers_are_reported_with_their_parent_and_outcome(here: Session) -> None:
    """Also those that ended while the session was away."""
    worker = here.worker(SOURCE)
    path = worker.spec.socket_path
    post(path, "/echo/run_sync", {"input": {"x": 1}}, x_execution_id="p1", x_flash_parent="e0", traceparent="00-a-b-01")
    (first,) = receive(worker, Summary).calls
    assert (first.execution, first.parent, first.trace, first.function) == ("p1", "e0", "00-a-b-01", "own.echo")
    assert (first.outcome, first.code) == ("success", "") and first.started_ms > 1_600_000_000_000
    here.stop_listening()
    link_of(worker).close()
    post(path, "/fails/run_sync", {"input": {}}, x_execution_id="p2")
    here.listen_again()
    worker.link, _, _ = here.accept()
    (second,) = receive(worker, Summary).calls
    assert (second.execution, second.outcome, second.code) == ("p2", "error", "USER_ERROR")


def test_calls_of_peers_cost_the_session_no_word_while_they_are_fast(here: Session) -> None:
    """It may send calls ahead whatever is free, so that nothing would follow from it. One that is slow ends that."""
    worker = here.worker(SOURCE)
    path = worker.spec.socket_path
    for _ in range(20):  # a machine with other work may make a fast call slow
        quick(worker)
        for number in range(5):
            post(path, "/echo/run_sync", {"input": {"x": number}})
        said = [frame for frame in heard(worker) if isinstance(frame, Credit)]
        if not said:
            break
    assert not said
    post(path, "/naps/run_sync", {"input": {}})
    post(path, "/echo/run_sync", {"input": {"x": 1}})
    assert [frame.free for frame in heard(worker) if isinstance(frame, Credit)][-2:] == [0, 1]
    invoke(worker, "own.echo", 1, execution="e1")
    assert receive(worker, Result).execution == "e1"


def test_ten_thousand_calls_of_peers_are_remembered_and_the_rest_is_counted() -> None:
    """While nobody takes them; the oldest go first."""
    from flashmesh.worker import summaries as module

    async def story() -> None:
        open_now = False
        taken: list[Summary] = []

        def send(frame: Summary) -> bool:
            if open_now:
                taken.append(frame)
            return open_now

        class Target:
            id = "own.echo"

        class Ended:
            execution, parent, trace, target, started_ns, received_ns = "", "", "", Target, 2, 1

        kept = module.Summaries(send)
        for number in range(module.KEPT + 5):
            ended = Ended()
            ended.execution = f"p{number}"
            kept.add(ended, "", 10)  # type: ignore[arg-type]
        kept.flush()
        open_now = True
        kept.flush()
        assert sum(len(frame.calls) for frame in taken) == module.KEPT
        assert (taken[0].dropped, taken[1].dropped, taken[0].calls[0].execution) == (5, 0, "p5")

    asyncio.run(story())


def test_the_payload_of_a_call_that_waits_is_the_clients_own(here: Session, tmp_path: Path) -> None:
    """Waiting changes nothing about a call."""
    worker = here.worker(SOURCE)
    quick(worker)
    go = tmp_path / "go"
    invoke(worker, "own.until_file", str(go), execution="slow")
    link_of(worker).send(Invoke("e1", "own.echo", payload=b'{"x": [1,  2]}'))
    started(worker, "slow")
    go.touch()
    assert receive(worker, Result, execution="e1").payload == b"[1,2]"


# What begins without a word


def in_a_moment(worker: Worker) -> None:
    """Let it find out that every call is over in a moment: until one is answered that was not announced."""
    for number in range(5000):
        invoke(worker, "own.echo", number, execution=f"moment{number}")
        frame = link_of(worker).receive(10)
        if isinstance(frame, Result):
            return
        receive(worker, Result)
    raise AssertionError("every call was announced")


def test_calls_that_are_over_in_a_moment_are_answered_and_not_announced(here: Session) -> None:
    """In their order, whether they come alone or together."""
    worker = here.worker(SOURCE)
    in_a_moment(worker)
    for number in range(20):
        invoke(worker, "own.echo", number, execution=f"c{number}")
    frames = [link_of(worker).receive(10) for _ in range(20)]
    assert [frame.execution for frame in frames if isinstance(frame, Result)] == [f"c{number}" for number in range(20)]


@pytest.mark.parametrize("meta", [LATER, {"idempotency_key": "k"}, {"stream": True}])
def test_a_call_whose_record_needs_it_is_announced_however_fast_it_is(here: Session, meta: dict[str, object]) -> None:
    """What is accepted for later is known to run; so is what is repeated after a crash, or streams."""
    worker = here.worker(SOURCE)
    in_a_moment(worker)
    invoke(worker, "own.echo", 1, execution="e1", meta=meta)
    assert receive(worker, Started).execution == "e1"
    assert receive(worker, Result).execution == "e1"


def test_a_call_with_a_limit_is_announced_however_fast_it_is(here: Session) -> None:
    """Its time counts from its beginning, which the session must know."""
    worker = here.worker(SOURCE)
    in_a_moment(worker)
    invoke(worker, "own.echo", 1, execution="e1", deadline_ms=5000)
    assert receive(worker, Started).execution == "e1"


def test_a_call_that_lasts_after_all_is_announced_while_it_runs(here: Session) -> None:
    """The ones before it were over in a moment, so it began without a word."""
    worker = here.worker(SOURCE)
    go = here.folder / "go"
    in_a_moment(worker)
    invoke(worker, "own.until_file_async", str(go), execution="e1")
    assert receive(worker, Started).execution == "e1"
    go.touch()
    assert outcome(worker) == "finished"
    invoke(worker, "own.echo", 1, execution="e2")
    assert receive(worker, Started).execution == "e2"


def test_a_new_session_is_told_what_began_last(here: Session) -> None:
    """So that it knows what of the calls it never heard of again had run."""
    worker = here.worker(SOURCE)
    in_a_moment(worker)
    for number in range(3):
        invoke(worker, "own.echo", number, execution=f"c{number}")
    for _ in range(3):
        receive(worker, Result)
    link_of(worker).close()
    worker.link, hello, _ = here.accept()
    assert hello.begun == ["c2"]
