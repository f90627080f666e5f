"""A worker process from READY to its end: cancelling, limits, draining, idling, JOB mode, a session that goes away."""

import asyncio
import os
import signal
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
from worker_fixtures import (
    DEADLINE_S,
    Worker,
    call,
    eventually,
    invoke,
    link_of,
    outcome,
    receive,
    session,
    started,
)

from flashmesh.functions.errors import Cancelled, LinkLost, TimedOut
from flashmesh.wire.frames import Cancel, Drain, Error, Result
from flashmesh.worker import runtime
from flashmesh.worker.records import Reason, State

SOURCE = """
    import asyncio, os, pathlib, time
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="own")
    notes = []

    @remote(resource)
    def echo(x):
        return x

    @remote(resource)
    def busy(path=None):
        try:
            if path:
                pathlib.Path(path).touch()
            while True:
                pass
        finally:
            notes.append("busy cleaned up")

    @remote(resource)
    def sleeps():
        time.sleep(100)

    @remote(resource)
    def swallows():
        try:
            time.sleep(100)
        except Exception:
            return "nevertheless"

    @remote(resource)
    async def waits():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            notes.append("waits was told")
            raise

    @remote(resource)
    async def hogs():
        while True:
            pass

    @remote(resource)
    async def child_hogs():
        async def child():
            while True:
                pass
        await asyncio.gather(child())

    @remote(resource)
    def ticks():
        try:
            while True:
                yield 1
        except BaseException as error:
            notes.append(type(error).__name__)
            raise

    @remote(resource)
    def noted():
        return notes

    @remote(resource)
    def until_file(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return "finished"

    @remote(resource)
    async def until_file_async(path):
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
        return "finished"
    """


def demand(worker: Worker, reason: Reason) -> None:
    """What a template does to end a call: write it down, and send the signal."""
    running = eventually(lambda: worker.record.running())[0]
    worker.record.demand(running, reason)
    os.kill(worker.process.pid, signal.SIGUSR1)


@pytest.mark.parametrize("function", ["own.busy", "own.sleeps", "own.swallows", "own.hogs", "own.child_hogs"])
@pytest.mark.parametrize(("reason", "kind"), [("cancel", Cancelled), ("timeout", TimedOut)])
def test_a_call_that_holds_the_thread_is_ended_in_its_own_code(
    function: str, reason: Reason, kind: type[Exception]
) -> None:
    """An endless loop, a blocking call, an async body that never awaits: the worker stays and takes the next call."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, function)
        assert started(worker)
        demand(worker, reason)
        assert isinstance(outcome(worker), kind)
        assert call(worker, "own.echo", 1, execution="e2") == 1


def test_the_user_codes_own_clean_up_runs() -> None:
    """The exception goes through `finally` blocks on its way out."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, "own.busy", str(here.folder / "begun"))
        eventually((here.folder / "begun").exists)
        demand(worker, "cancel")
        assert isinstance(outcome(worker), Cancelled)
        assert call(worker, "own.noted") == ["busy cleaned up"]


def test_a_cancel_over_the_link_ends_an_asynchronous_call() -> None:
    """The task is cancelled, its own clean-up runs."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, "own.waits")
        assert started(worker)
        link_of(worker).send(Cancel("e1"))
        assert isinstance(outcome(worker), Cancelled)
        assert call(worker, "own.noted") == ["waits was told"]


def test_a_request_for_a_call_that_is_over_hits_nobody() -> None:
    """A late signal does not end the next call."""
    with session() as here:
        worker = here.worker(SOURCE)
        assert call(worker, "own.echo", 1) == 1
        last = worker.record.calls()[0]
        worker.record.demand(last, "cancel")
        os.kill(worker.process.pid, signal.SIGUSR1)
        for number in range(20):
            assert call(worker, "own.echo", number) == number


def test_a_suspended_generator_is_ended_and_told_why() -> None:
    """Waiting for credits is no hiding place."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, "own.ticks", meta={"stream": True})
        assert started(worker)
        link_of(worker).send(Cancel("e1"))
        assert isinstance(outcome(worker), Cancelled)
        assert call(worker, "own.noted") == ["Cancelled"]


@pytest.mark.parametrize("how", ["SIGTERM", "DRAIN"])
@pytest.mark.parametrize("function", ["own.until_file", "own.until_file_async"])
def test_a_draining_worker_finishes_what_runs_and_leaves(how: str, function: str) -> None:
    """The answer arrives, then the process ends with status 0; what comes meanwhile is not run."""
    with session() as here:
        worker = here.worker(SOURCE)
        file = here.folder / "go"
        invoke(worker, function, str(file))
        assert started(worker)
        if how == "SIGTERM":
            os.kill(worker.process.pid, signal.SIGTERM)
        else:
            link_of(worker).send(Drain())
        if function == "own.until_file_async":
            receive(worker, Drain)
            invoke(worker, "own.echo", 1, execution="late")
            error = receive(worker, Error)
            assert (error.execution, error.code, error.ran) == ("late", "BUSY", False)
        file.touch()
        assert outcome(worker) == "finished"
        link_of(worker).close()
        assert worker.exit_status() == 0


def test_an_idle_worker_leaves_by_itself() -> None:
    """It tells the session, closes nothing under it, and ends with status 0."""
    with session() as here:
        worker = here.worker(SOURCE, config={"idle_timeout_s": 0.3})
        assert call(worker, "own.echo", 1) == 1
        assert receive(worker, Drain).reason == "idle"
        link_of(worker).close()
        assert worker.exit_status() == 0


def test_a_worker_that_must_stay_does_not_leave_when_idle() -> None:
    """One of `workers_min` has no idle limit."""
    with session() as here:
        worker = here.worker(SOURCE, config={"idle_timeout_s": 0.05}, context={"may_idle_out": False})
        with pytest.raises(TimeoutError):
            link_of(worker).receive(0.5)
        assert call(worker, "own.echo", 1) == 1


def test_a_job_worker_takes_exactly_one_call() -> None:
    """Its second INVOKE is not run; after the answer it leaves."""
    with session() as here:
        worker = here.worker(SOURCE, context={"one_shot": True})
        invoke(worker, "own.until_file_async", str(here.folder / "go"), execution="e1")
        invoke(worker, "own.echo", 1, execution="e2")
        assert receive(worker, Error, execution="e2").ran is False
        (here.folder / "go").touch()
        assert outcome(worker) == "finished"
        link_of(worker).close()
        assert worker.exit_status() == 0


def test_a_worker_dials_again_for_ever() -> None:
    """The session goes and comes back; the worker is there again, ready, and takes calls."""
    with session() as here:
        worker = here.worker(SOURCE)
        here.stop_listening()
        link_of(worker).close()
        here.listen_again()
        worker.link, hello, ready = here.accept()
        assert (hello.pid, hello.free, ready.free) == (worker.process.pid, 1, 1)
        assert call(worker, "own.echo", 2) == 2


def test_a_call_that_runs_while_the_session_goes_away_is_answered_to_the_next_one() -> None:
    """The new connection is told what runs, gets the truth about free slots, and the result under its attempt."""
    with session() as here:
        worker = here.worker(SOURCE)
        file = here.folder / "go"
        invoke(worker, "own.until_file_async", str(file), attempt=2)
        assert started(worker)
        link_of(worker).close()
        worker.link, hello, _ = here.accept()
        assert (hello.free, hello.running, hello.held) == (0, ["e1@2"], [])
        file.touch()
        answered = receive(worker, Result)
        assert (answered.execution, answered.attempt, answered.free) == ("e1", 2, 1)
        invoke(worker, "own.echo", 3, execution="e2")
        assert receive(worker, Result).execution == "e2"


def test_the_end_of_the_session_ends_worker_and_subprocesses() -> None:
    """End of file on the session pipe: the whole group is killed."""
    with session() as here:
        worker = here.worker(
            """
            import subprocess
            from flashmesh import LiveServerless, remote

            @remote(LiveServerless(name="own"))
            def start():
                return subprocess.Popen(["sleep", "1000"]).pid
            """
        )
        pid = call(worker, "own.start")
        os.close(worker.session_write)
        worker.session_write = -1
        assert worker.exit_status() == -signal.SIGKILL
        eventually(lambda: not is_running(pid), "the end of the subprocess")


def test_a_killed_worker_closes_its_link() -> None:
    """The session sees the end of the connection at once."""
    with session() as here:
        worker = here.worker(SOURCE)
        invoke(worker, "own.busy")
        assert started(worker)
        worker.process.kill()
        with pytest.raises(LinkLost):
            link_of(worker).receive(20)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_call_that_was_accepted_runs_though_its_worker_was_told_to_leave_meanwhile() -> None:
    """Its connection is in nobody else's hands: what is missing of the request is waited for."""
    with session() as here:
        worker = here.worker(SOURCE)
        body = b'{"input": {"x": 1}}'
        head = b"POST /echo/run_sync HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(DEADLINE_S)
            caller.connect(worker.spec.socket_path)
            caller.sendall(head)
            assert eventually(lambda: worker.record.head().free == 0)
            os.kill(worker.process.pid, signal.SIGTERM)
            assert eventually(lambda: worker.record.head().state in (State.LEAVING, State.DRAINING))
            caller.sendall(body)
            answer = b"".join(iter(lambda: caller.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        link_of(worker).close()
        assert worker.exit_status() == 0


@pytest.mark.parametrize("by_link", [True, False])
def test_a_job_worker_waits_for_its_sessions_goodbye_only_where_a_call_may_be_on_its_way(by_link: bool) -> None:
    """The session gave its one call: it may send no other. A peer did: the session may have sent one meanwhile."""
    waited: list[float] = []

    class Record:
        def set_leaving(self) -> None: ...

    class Goodbye:
        def want_to_leave(self, reason: str) -> None: ...
        async def release(self, *, patience_s: float) -> None: ...
        async def close(self, *, patience_s: float) -> None:
            waited.append(patience_s)

    async def scenario() -> None:
        context = SimpleNamespace(one_shot=True, record=Record())
        worker = runtime.Worker(cast(Any, None), cast(Any, context))
        worker._parts = cast(Any, SimpleNamespace(faces=(), uplink=Goodbye(), runner=SimpleNamespace(taken=0)))
        assert worker.on_call() if by_link else worker.on_accepted_call()
        await worker._finish()

    asyncio.run(scenario())
    assert waited == [0.0 if by_link else runtime.GOODBYE_S]
