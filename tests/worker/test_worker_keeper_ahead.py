"""A template that a keeper starts before it is asked for one."""

import os
import signal
import sys

import pytest
from mini_session import MiniSession, run

from flashmesh.worker.keeper.child import KeeperChild
from flashmesh.worker.keeper.client import Keeper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class EarlySession(MiniSession):
    """Its keeper starts a template ahead."""

    async def start_keeper(self) -> Keeper:
        child = KeeperChild(self.pipe_read, self.folder, template_command=self.template_command, ahead=True)
        return await Keeper.take(child, self._on_event)

    async def ahead(self) -> int:
        """The pid of the template that waits."""
        await self.until(lambda: len(self.left_over()) == 2)
        (pid,) = self.left_over().keys() - {self.keeper.pid}
        return pid


def test_the_first_template_asked_for_is_the_one_that_waits():
    """It serves its endpoint like any other, and the next start is a process of its own."""

    async def scenario() -> None:
        async with EarlySession() as session:
            waiting = await session.ahead()
            assert await session.keeper.start_template(session.spec()) == waiting
            assert (await session.peer("echo first")).startswith("first ")
            await session.keeper.stop_template("e", drain_s=1)
            assert await session.keeper.start_template(session.spec()) != waiting
            assert (await session.peer("echo second")).startswith("second ")

    run(scenario)


def test_a_peer_gets_the_template_that_waits():
    """Not only the session's own call finds it."""

    async def scenario() -> None:
        async with EarlySession() as session:
            waiting = await session.ahead()
            await session.keeper.remember(session.spec())
            assert (await session.peer("echo peer")).startswith("peer ")
            assert waiting in session.left_over()

    run(scenario)


def test_one_that_died_while_it_waited_is_replaced_when_it_is_wanted():
    """Nobody is told, and the call is answered."""

    async def scenario() -> None:
        async with EarlySession() as session:
            waiting = await session.ahead()
            os.kill(waiting, signal.SIGKILL)
            await session.until(lambda: waiting not in session.left_over())
            assert await session.keeper.start_template(session.spec()) != waiting
            assert (await session.peer("echo anew")).startswith("anew ")
            assert session.events == []

    run(scenario)


def test_it_ends_with_a_keeper_that_is_killed():
    """It notices by itself: nobody else knows of it."""

    async def scenario() -> None:
        async with EarlySession() as session:
            await session.ahead()
            os.kill(session.keeper.pid, signal.SIGKILL)
            await session.until(lambda: not session.left_over())

    run(scenario)
