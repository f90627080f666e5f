"""A template makes workers, reads their output, ends what runs too long, and survives whatever an import does."""

import ast
import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from mini_session import MiniSession, children, run

from flashmesh.wire.frames import Cancel, Drain

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_output_of_user_code_arrives_with_its_function():
    """Each line is a LOG naming function, execution and worker; words without a newline come when it ends."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            assert await session.call("say", "hello") == "said"
            log = await session.until(lambda: next((log for log in session.logs if log.text == "hello"), None))
            assert (log.function, log.execution, log.stream) == ("m.say", "x1", "stdout")
            assert log.worker in session.workers
            session.send("words_then_die", "last words")
            log = await session.until(lambda: next((log for log in session.logs if log.text == "last words"), None))
            assert log.function == "m.words_then_die"
            assert "no newline" in session.text()

    run(scenario)


def test_a_worker_killed_mid_call_is_reported_and_replaced():
    """WORKER_GONE says how it ended and what it had begun last; the next call has a fresh worker."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            (first,) = session.workers
            execution = session.send("words_then_die", "bye")
            gone = await session.until(lambda: session.gone)
            assert (gone[0].worker, gone[0].status) == (first, -signal.SIGKILL)
            assert gone[0].begun == [execution]
            await session.until(lambda: set(session.ready()) - {first})
            assert await session.call("echo", "alive") == "alive"

    run(scenario)


def test_a_fresh_worker_has_shed_what_was_its_parents():
    """Own group, no foreign sockets, default signal handlers, own random numbers, thread counts restored."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(workers_max=2), workers=2)
            one, two = [ast.literal_eval(await session.call("facts", worker=worker)) for worker in session.ready()]
            assert one["random"] != two["random"]
            for facts in (one, two):
                assert facts["group"]
                assert facts["stdin"] == "/dev/null"
                assert facts["chld"]
                assert facts["omp"] == os.environ.get("OMP_NUM_THREADS")
                # link, two for its own signals, the endpoint's two and a copy of one; no template's, no zygote's
                assert facts["fds"].count("socket") == 6
                assert "anon_inode" not in facts["fds"], "no epoll of the template's"

    run(scenario)


def test_what_the_import_opened_survives_the_fork():
    """A file the module opened is the user's, and still open in every worker."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            assert await session.call("build") == "b1 True"

    run(scenario)


def test_a_call_past_its_deadline_is_interrupted_and_its_worker_goes_on():
    """SIGUSR1 ends the call in user code; the same process takes the next one."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            (worker,) = session.workers
            execution = session.send("sleep", "600", deadline_ms=100)
            assert await session.answer(execution) == "timeout"
            assert await session.call("echo", "same") == "same"
            assert list(session.workers) == [worker]

    run(scenario)


def test_a_call_that_ignores_its_deadline_is_killed_and_its_worker_replaced():
    """Two seconds after the signal the group is killed; WORKER_GONE names reason and execution."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            execution = session.send("stubborn", "600", deadline_ms=100)
            gone = await session.until(lambda: session.gone)
            assert gone[0].reason == f"timeout {execution}"
            assert gone[0].status == -signal.SIGKILL
            assert await session.call("echo", "fresh") == "fresh"

    run(scenario)


def test_a_cancelled_call_frees_its_worker():
    """CANCEL to the template reaches a call that is already deep in synchronous code."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            execution = session.send("hold", "600")
            await session.until(lambda: "holding" in session.text())
            assert session.template is not None
            session.template.send(Cancel(execution))
            assert await session.answer(execution) == "cancel"

    run(scenario)


def test_a_failing_import_is_a_state_and_peers_are_told():
    """READY says file, line and reason; a peer gets 503 with the reason instead of waiting."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.start_template(session.spec(env={"FAKE_IMPORT": "fail"}))
            (info,) = await session.until(lambda: session.infos)
            assert info["state"] == "import_failed"
            assert (info["error"]["file"], info["error"]["line"]) == ("broken.py", 3)
            answer = await session.peer("POST /run_sync HTTP/1.1\r\n\r")
            assert answer.startswith("HTTP/1.1 503")
            assert "SyntaxError: invalid syntax" in answer
            await session.update(session.spec(build="b2", generation=2))
            await session.until(lambda: session.infos[-1]["state"] == "ready")
            assert (await session.peer("echo mended")).startswith("mended e/2.")

    run(scenario)


def test_an_import_that_never_ends_is_ended_with_all_it_started():
    """The limit counts; its subprocess goes with it, and the state says why."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.keeper.start_template(
                session.spec(env={"FAKE_IMPORT": "hang"}, import_limit_s=0.5)
            )
            (info,) = await session.until(lambda: session.infos)
            assert info["state"] == "import_failed"
            assert info["error"]["reason"] == "import took longer than 0.5 s"
            await session.until(lambda: session.left_over().keys() == {session.keeper.pid, template})

    run(scenario)


def test_an_import_that_ends_the_process_is_a_failed_import():
    """`os._exit` in a module does not take the template along."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.start_template(session.spec(env={"FAKE_IMPORT": "exit"}))
            (info,) = await session.until(lambda: session.infos)
            assert info["error"]["reason"] == "the import ended the process with exit status 9"

    run(scenario)


@pytest.mark.parametrize("how", ["thread", "preload"])
def test_what_may_not_be_forked_is_started(how):
    """The process that imported becomes the first worker, others are fresh interpreters, and READY says why."""

    async def scenario() -> None:
        async with MiniSession() as session:
            env = {"FAKE_IMPORT": "thread"} if how == "thread" else {}
            template = await session.start(session.spec(env=env, workers_max=2, preload=how != "preload"), workers=2)
            (info,) = session.infos
            assert info["state"] == "not_forkable"
            assert ("background" if how == "thread" else "preload=False") in info["reason"]
            assert sorted(children(template)) == sorted(session.pids[worker] for worker in session.workers)
            for worker in session.ready():
                assert await session.call("echo", "hi", worker=worker) == "hi"
            assert any("are started, not forked" in text for text in session.text())

    run(scenario)


def test_where_the_system_cannot_fork_everything_is_started():
    """The road of macOS: importer and workers are fresh interpreters."""

    async def scenario() -> None:
        async with MiniSession(env={"FAKE_NO_FORK": "1"}) as session:
            await session.start(session.spec(workers_max=2), workers=2)
            assert session.infos[0]["state"] == "not_forkable"
            for worker in session.ready():
                assert await session.call("echo", "hi", worker=worker) == "hi"

    run(scenario)


def test_a_gpu_endpoint_imports_without_its_gpu_and_runs_with_it():
    """Workers see the devices they were given; a call that comes back is refused with 508 naming the chain."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(cuda_devices="0,1"))
            assert ast.literal_eval(await session.call("facts"))["cuda"] == "0,1"
            request = "POST /run_sync HTTP/1.1\r\nX-Flash-Chain: a,e,b\r\n\r"
            answer = await session.peer(request, again=True)
            assert answer.startswith("HTTP/1.1 508")
            assert "a,e,b" in answer

    run(scenario)


def test_a_gpu_import_that_cannot_be_forked_is_thrown_away():
    """What it imported thinks that there is no GPU, so that no worker may be made of it."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(cuda_devices="3", env={"FAKE_IMPORT": "thread"}))
            assert ast.literal_eval(await session.call("facts"))["cuda"] == "3"
            await session.until(lambda: session.text().count("importing b1") == 2)

    run(scenario)


def test_in_job_mode_every_call_has_a_process_of_its_own_and_a_spare_one_waits():
    """A worker leaves after its call; the next one was forked before."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(mode="JOB", workers_max=3))
            used = set()
            for number in range(5):
                worker = (await session.until(lambda: [name for name in session.ready() if name not in used]))[0]
                used.add(worker)
                assert await session.call("echo", str(number), worker=worker) == str(number)
            assert len(used) == 5
            await session.until(lambda: [name for name in session.ready() if name not in used])
            await session.until(lambda: len(session.workers) == 1)

    run(scenario)


def test_after_the_first_worker_the_next_one_is_forked_ahead_and_takes_the_next_start():
    """Nobody's worker until it is wanted: not announced, not counted, and gone with its endpoint."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec(workers_max=2))
            (zygote,) = children(template)
            first, ahead = sorted(await session.until(lambda: len(children(zygote)) == 2 and children(zygote)))
            assert [pid_of(worker) for worker in session.workers] == [first]
            await session.scale(2)
            await session.until(lambda: len(session.ready()) == 2)
            assert sorted(pid_of(worker) for worker in session.workers) == [first, ahead]
            assert (
                await session.call("echo", "hi", worker=next(w for w in session.workers if pid_of(w) == ahead)) == "hi"
            )

    run(scenario)


def test_a_worker_forked_ahead_that_was_killed_is_replaced_by_a_fork_on_demand():
    """Its death is nobody's: no worker is reported gone, and the next start works."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec(workers_max=2))
            (zygote,) = children(template)
            _, ahead = sorted(await session.until(lambda: len(children(zygote)) == 2 and children(zygote)))
            os.kill(ahead, signal.SIGKILL)
            await session.until(lambda: ahead not in children(zygote))
            await session.scale(2)
            await session.until(lambda: len(session.ready()) == 2)
            assert not session.gone

    run(scenario)


def pid_of(worker: str) -> int:
    return int(worker.rpartition("-")[2])


def test_idle_workers_leave_but_the_minimum_stays():
    """Workers beyond min go by themselves and are not forked again until somebody wants them."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(workers_min=1, workers_max=3, idle_timeout_s=1), workers=3)
            await session.until(lambda: len(session.workers) == 1 and len(session.gone) == 2)
            assert [gone.status for gone in session.gone] == [0, 0]
            assert await session.call("echo", "still") == "still"

    run(scenario)


def test_a_template_without_work_leaves_and_a_peer_brings_it_back():
    """Scale to zero: no process of the endpoint stays; the first connection starts it again and is answered."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.start_template(session.spec(idle_timeout_s=0.1, template_idle_s=0.1))
            await session.scale(1)
            await session.until(lambda: session.left_over().keys() == {session.keeper.pid} and session.events)
            assert session.events[0].status == 0
            assert (await session.peer("echo cold")).startswith("cold ")
            assert session.events[1].started

    run(scenario)


def test_peers_make_workers_up_to_the_maximum_and_never_more():
    """Eight callers at once on at most three workers: all are answered, by three."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.start_template(session.spec(workers_max=3))
            answers = await asyncio.gather(*(session.peer("sleep 0.3") for _ in range(8)))
            assert all(answer.startswith("slept ") for answer in answers)
            assert len({answer.split()[1] for answer in answers}) == 3
            assert len(session.workers) == 3

    run(scenario)


def test_one_peer_at_a_time_needs_one_worker():
    """Short calls one after another do not make the template fork."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.start_template(session.spec(workers_max=4))
            who = {(await session.peer(f"echo {number}")).split()[1] for number in range(200)}
            assert len(who) == 1

    run(scenario)


def test_a_busy_worker_does_not_hold_a_peer_back_where_another_may_be_made():
    """A peer that waits longer than the settling time gets a worker of its own; at the maximum it waits."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(workers_max=2))
            (busy,) = session.workers
            session.send("hold", "600")
            await session.until(lambda: "holding" in session.text())
            assert (await session.peer("echo second")).split()[1] != busy

    run(scenario)


def test_a_call_that_comes_back_gets_an_extra_worker():
    """With its only worker waiting for it, the call through the second socket is answered all the same."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(idle_timeout_s=1))
            (busy,) = session.workers
            session.send("sleep", "600")
            answer = await session.peer("echo back", again=True)
            assert answer.startswith("back ")
            assert answer.split()[1] != busy
            await session.until(lambda: len(session.workers) == 1)

    run(scenario)


@pytest.mark.parametrize("mode", ["WARM", "JOB"])
def test_a_call_that_comes_back_twice_gets_two_extra_workers(mode: str, tmp_path: Path):
    """Though no other worker may be made, somebody waits at the second socket while its first extra worker is busy."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(idle_timeout_s=0.3, mode=mode))
            session.send("sleep", "600")
            outer = asyncio.create_task(session.peer(f"wait {tmp_path / 'go'}", again=True))
            await session.until((tmp_path / "go.begun").exists)
            inner = await session.peer("echo back", again=True)
            (tmp_path / "go").touch()
            assert (await outer).split()[0] == "waited"
            assert (await outer).split()[1] != inner.split()[1]

    run(scenario)


def test_an_edit_is_served_by_new_workers_while_the_old_ones_finish():
    """Old workers leave only once a new one is ready; a call that runs keeps its build."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec(drain_limit_s=10))
            (old,) = session.workers
            execution = session.send("hold", "0.5")
            await session.until(lambda: "holding" in session.text())
            await session.update(session.spec(build="b2", generation=2))
            new = (await session.until(session.ready))[0]
            assert new != old
            assert (await session.call("build", worker=new)).startswith("b2")
            assert await session.answer(execution) == "held"
            await session.until(lambda: list(session.workers) == [new])
            await session.until(lambda: len(children(template)) == 1)
            assert [gone.status for gone in session.gone] == [0]

    run(scenario)


def test_no_call_fails_across_many_edits():
    """Peers call all the time while the build changes ten times; every call is answered, the last by the last build."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(workers_max=2, drain_limit_s=5))
            done = asyncio.Event()
            answers: list[str] = []

            async def call_on() -> None:
                while not done.is_set():
                    answers.append(await session.peer("echo x"))

            callers = [asyncio.create_task(call_on()) for _ in range(2)]
            for number in range(2, 12):
                await session.update(
                    session.spec(build=f"b{number}", generation=number, workers_max=2, drain_limit_s=5)
                )
                await session.until(
                    lambda number=number: f"b{number}" in {session.builds[name] for name in session.workers}
                )
            await session.until(lambda: {session.builds[name] for name in session.workers} == {"b11"})
            done.set()
            await asyncio.gather(*callers)
            assert all(answer.startswith("x ") for answer in answers)
            assert (await session.peer("build")).startswith("b11")

    run(scenario)


def test_an_edit_that_does_not_import_leaves_the_old_build_serving():
    """READY tells the failure under the new build's id; calls go on."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            await session.update(session.spec(build="b2", generation=2, env={"FAKE_IMPORT": "fail"}))
            info = await session.until(lambda: next((info for info in session.infos if info["build"] == "b2"), None))
            assert info["state"] == "import_failed"
            assert (await session.call("build")).startswith("b1")
            await session.update(session.spec(build="b3", generation=3))
            await session.until(lambda: "b3" in {session.builds[name] for name in session.workers})

    run(scenario)


def test_an_edit_whose_workers_cannot_start_leaves_the_old_build_serving():
    """A start-up hook that fails is told with its traceback, and the old workers stay."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            await session.update(session.spec(build="b2", generation=2, env={"FAKE_START": "fail"}))
            info = await session.until(
                lambda: next((info for info in session.infos if info["state"] == "import_failed"), None)
            )
            assert info["build"] == "b2"
            assert "the hook failed" in info["error"]["traceback"]
            assert (await session.call("build")).startswith("b1")

    run(scenario)


def test_the_newest_of_two_quick_edits_wins():
    """An import that is still under way is given up for the next one."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            await session.update(session.spec(build="b2", generation=2, env={"FAKE_IMPORT": "hang"}))
            await session.update(session.spec(build="b3", generation=3))
            await session.until(lambda: "b3" in {session.builds[name] for name in session.workers})
            # The keeper, its template, one zygote with one worker and the next: nothing of the two builds before.
            await session.until(lambda: len(session.left_over()) == 5)

    run(scenario)


def test_a_call_in_the_first_worker_of_an_edit_outlives_the_next_edit():
    """The template hears of the third build before it hears that the second one's worker is ready, and busy."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec(drain_limit_s=10))
            start = session.folder / "start"
            await session.update(
                session.spec(build="b2", generation=2, env={"FAKE_START_WAIT": str(start)}, drain_limit_s=10)
            )
            await session.until(lambda: "b2 starts" in session.text())
            os.kill(template, signal.SIGSTOP)
            await session.update(session.spec(build="b3", generation=3))
            start.touch()
            name = await session.until(
                lambda: next((name for name in session.ready() if session.builds[name] == "b2"), None)
            )
            finish = session.folder / "finish"
            execution = session.send("wait", str(finish), worker=name)
            await session.until(Path(f"{finish}.begun").exists)
            os.kill(template, signal.SIGCONT)
            await session.until(lambda: "b3" in {session.builds[name] for name in session.workers})
            finish.touch()
            assert await session.answer(execution) == "waited"
            await session.until(lambda: {session.builds[name] for name in session.workers} == {"b3"})
            await session.until(lambda: [gone.status for gone in session.gone] == [0, 0])

    run(scenario)


def test_an_edit_takes_over_though_its_first_job_was_done_before_that_was_noticed():
    """In JOB mode the first worker leaves after one call, which may be over before the template looks."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec())
            start = session.folder / "start"
            await session.update(
                session.spec(build="b2", generation=2, env={"FAKE_START_WAIT": str(start)}, mode="JOB")
            )
            await session.until(lambda: "b2 starts" in session.text())
            os.kill(template, signal.SIGSTOP)
            start.touch()
            name = await session.until(
                lambda: next((name for name in session.ready() if session.builds[name] == "b2"), None)
            )
            assert await session.call("echo", "once", worker=name) == "once"
            await session.until(lambda: name not in session.workers)
            os.kill(template, signal.SIGCONT)
            await session.until(lambda: {session.builds[name] for name in session.workers} == {"b2"})

    run(scenario)


def test_workers_that_die_before_they_are_ready_are_given_up_with_their_words():
    """After three in a row the endpoint counts as broken: the session and peers are told, not left waiting."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.start_template(session.spec(env={"FAKE_START": "fail"}))
            await session.scale(1)
            info = await session.until(
                lambda: next((info for info in session.infos if info["state"] == "import_failed"), None)
            )
            assert "exit status 1 before it was ready" in info["error"]["reason"]
            assert "the hook failed" in info["error"]["traceback"]

    run(scenario)


def test_a_template_dials_again_and_repeats_what_the_session_must_know():
    """The link may break; READY is said again, and scaling goes on."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(workers_max=2))
            assert session.template is not None
            session.template.close()
            await session.until(lambda: len(session.infos) == 2)
            assert session.infos[0] == session.infos[1]
            await session.scale(2)
            await session.until(lambda: len(session.ready()) == 2)

    run(scenario)


def test_a_drained_template_leaves():
    """DRAIN over the link is a SIGTERM with a limit of its own."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            session.send("hold", "600")
            await session.until(lambda: "holding" in session.text())
            assert session.template is not None
            session.template.send(Drain("done", limit_ms=100))
            await session.until(lambda: session.left_over().keys() == {session.keeper.pid})
            assert session.gone[0].reason == "drain limit"

    run(scenario)


def test_output_faster_than_anybody_reads_is_cut_and_counted():
    """A call that prints a hundred thousand lines ends, and the lines that were dropped are counted."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            assert await session.call("flood", "60000") == "flooded"
            await session.until(lambda: "line 59999" in session.text()[-3:])
            lines = [log for log in session.logs if log.text.startswith("line ")]
            assert len(lines) + sum(log.dropped for log in lines) == 60000
            assert sum(log.dropped for log in lines) > 0

    run(scenario)
