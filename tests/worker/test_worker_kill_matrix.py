"""Whatever of ours is killed: within a second nothing of it is left, or the endpoint answers again."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mini_session import MiniSession, children, marked, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

DRAIN_S = 0.3
LIMIT_S = 1.0
SLACK_S = 8.0
"""For a loaded machine; the promise itself is LIMIT_S, which an idle one keeps."""

TARGETS = ("keeper", "template", "zygote", "worker")
SIGNALS = (signal.SIGTERM, signal.SIGKILL)
SITUATIONS = ("idle", "in a call", "with a subprocess of the user's")


async def within(session: MiniSession, since: float, condition, why: str) -> None:
    await session.until(condition, why)
    took = time.monotonic() - since
    assert took < DRAIN_S + LIMIT_S + SLACK_S, f"{why} took {took:.2f} s"


async def kill_one(target: str, number: int, situation: str) -> None:
    async with MiniSession() as session:
        template = await session.start(session.spec(drain_limit_s=DRAIN_S))
        (zygote,) = children(template)
        (worker,) = session.pids.values()
        users: list[int] = []
        if situation != "idle":
            session.send("child" if "subprocess" in situation else "sleep", "600")
            if "subprocess" in situation:
                line = await session.until(lambda: [text for text in session.text() if text.startswith("child")])
                users = [int(line[0].split()[1])]
        victim = {"keeper": session.keeper.pid, "template": template, "zygote": zygote, "worker": worker}[target]
        since = time.monotonic()
        os.kill(victim, number)
        old = {victim, worker, *users, *({template, zygote} if target in ("keeper", "template") else set())}
        await within(session, since, lambda: not old & session.left_over().keys(), "the end of what it had made")
        if target == "keeper":
            assert not session.left_over(), "a keeper's end leaves nothing behind"
            await session.until(lambda: session.keeper.lost)
            session.keeper = await session.start_keeper()
            session.sockets = await session.keeper.open("e", session.folder)
            await session.keeper.remember(session.spec())
        answer = await session.peer("echo again")
        assert answer.startswith("again ")


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_process_takes_its_own_along_and_the_endpoint_answers_again(target, number, situation):
    """Whichever of the four is killed, in whatever situation: its workers and theirs end, and a call is answered."""
    run(kill_one, target, number, situation)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_when_the_session_ends_nothing_stays(situation):
    """The session pipe's end kills keeper, template, zygote, workers and what user code had started, at once."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(), workers=1)
            if situation != "idle":
                session.send("child" if "subprocess" in situation else "sleep", "600")
                await session.until(lambda: "subprocess" not in situation or "child" in " ".join(session.text()))
            session.closing = True
            since = time.monotonic()
            os.close(session.pipe_write)
            session.pipe_write = -1
            await within(session, since, lambda: not session.left_over(), "the end of everything")
            await session.until(lambda: session.keeper.lost)

    run(scenario)


def test_a_session_killed_with_9_leaves_no_process(tmp_path: Path):
    """A real session process, killed in the middle of a call that had started a subprocess."""
    script = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from mini_session import MiniSession
async def main():
    async with MiniSession() as session:
        await session.start(session.spec())
        session.send("child", "600")
        await session.until(lambda: "child" in " ".join(session.text()))
        print(session.mark, session.folder, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    mark, folder = process.stdout.readline().split()
    process.stdout.close()
    assert len(marked(mark)) >= 5, "keeper, template, zygote, worker (soon the next one too) and the user's subprocess"
    process.kill()
    process.wait()
    end = time.monotonic() + LIMIT_S + SLACK_S
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.01)
    assert marked(mark) == {}
    for path in Path(folder).iterdir():
        path.unlink()
    Path(folder).rmdir()


def test_several_workers_die_with_a_killed_template():
    """No worker outlives its template, however many there are."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec(workers_max=4), workers=4)
            old = set(session.pids.values()) | {template}
            assert len(old) == 5
            os.kill(template, signal.SIGKILL)
            await session.until(lambda: not old & session.left_over().keys())
            assert (await session.peer("echo again")).startswith("again ")

    run(scenario)


def test_calls_that_run_finish_before_a_terminated_template_leaves():
    """SIGTERM drains: the answer of a running call still comes, then everything ends with status 0."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec(drain_limit_s=10))
            execution = session.send("hold", "0.3")
            await session.until(lambda: "holding" in session.text())
            os.kill(template, signal.SIGTERM)
            assert await session.answer(execution) == "held"
            exited = await session.until(lambda: session.events)
            assert exited[0].status == 0
            assert exited[0].reason == ""

    run(scenario)


def test_keepers_own_shutdown_waits_for_running_calls():
    """`close` gives calls their time and returns when the last process has gone."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(drain_limit_s=10))
            execution = session.send("hold", "0.3")
            await session.until(lambda: "holding" in session.text())
            closing = asyncio.create_task(session.keeper.close(drain_s=10))
            assert await session.answer(execution) == "held"
            await closing
            assert session.left_over() == {}

    run(scenario)


@pytest.mark.parametrize("victim", ["session", "template", "nobody"])
def test_a_subprocess_that_left_its_group_ends_too(victim):
    """User code may start a session of its own; when its worker, template or session is gone, it goes as well."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec())
            detached = int(await session.call("detach"))
            assert detached in session.left_over()
            if victim == "session":
                session.closing = True
                os.close(session.pipe_write)
                session.pipe_write = -1
                await session.until(lambda: session.keeper.lost)
            elif victim == "template":
                os.kill(template, signal.SIGKILL)
            else:
                await session.keeper.stop_template("e", drain_s=1)
            await session.until(lambda: detached not in session.left_over())

    run(scenario)
