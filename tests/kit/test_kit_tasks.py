"""Tasks with an owner."""

import asyncio

from flashmesh.kit.tasks import Tasks


def test_closing_cancels_what_runs_and_waits_until_it_has_ended() -> None:
    ended: list[str] = []

    async def work(name: str, begun: asyncio.Event) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what it does on its way out is waited for
            ended.append(name)

    async def play() -> None:
        tasks, begun = Tasks(), [asyncio.Event(), asyncio.Event()]
        first = tasks.begin(work("first", begun[0]), name="the first")
        tasks.begin(work("second", begun[1]))
        for one in begun:
            await one.wait()
        assert first.get_name() == "the first"
        await tasks.close()
        assert sorted(ended) == ["first", "second"]
        assert first.cancelled()

    asyncio.run(play())


def test_a_task_that_has_ended_is_not_held() -> None:
    async def nothing() -> None: ...

    async def play() -> None:
        tasks = Tasks()
        await tasks.begin(nothing())
        await asyncio.sleep(0)  # its callbacks
        assert not tasks._running
        await tasks.close()

    asyncio.run(play())


def test_what_a_task_raises_does_not_come_out_of_close() -> None:
    async def broken() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("on its way out")

    async def play() -> None:
        tasks = Tasks()
        tasks.begin(broken())
        await asyncio.sleep(0)  # it has begun
        await tasks.close()

    asyncio.run(play())
