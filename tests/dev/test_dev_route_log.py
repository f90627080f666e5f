"""What the bodies of HTTP routes print is shown under their names, and each request ends in one line."""

import asyncio
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.worker.lb.route import HttpRoute
from flashmesh.worker.lb.route_log import RouteLog


def route(name: str) -> HttpRoute:
    return HttpRoute(method="GET", path=f"/{name}", function=f"api.{name}", resource="api", file="api.py")


def logs() -> tuple[RouteLog, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return RouteLog(LogPrinter(out=out, err=err, pretty=False), stdout=out, stderr=err), out, err


def test_lines_of_two_bodies_that_take_turns_stay_whole_and_carry_their_names() -> None:
    log, out, _ = logs()

    async def body(name: str, turn: asyncio.Event, other: asyncio.Event) -> None:
        with log.request(route(name)):
            log.stdout.write(f"{name} begins, ")
            turn.set()
            await other.wait()
            log.stdout.write("and ends")

    async def both() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        await asyncio.gather(body("a", first, second), body("b", second, first))

    asyncio.run(both())
    assert sorted(out.getvalue().splitlines()) == ["[a] a begins, and ends", "[b] b begins, and ends"]


def test_requests_of_one_route_in_two_threads_finish_their_own_lines_only() -> None:
    log, out, _ = logs()
    turns = threading.Barrier(2, timeout=20)

    def body(number: int) -> None:
        with log.request(route("a")):
            log.stdout.write(f"{number} begins, ")
            turns.wait()
            log.stdout.write(f"{number} ends\n{number} was here")
            turns.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(body, (1, 2)))
    lines = sorted(out.getvalue().splitlines())
    assert lines == ["[a] 1 begins, 1 ends", "[a] 1 was here", "[a] 2 begins, 2 ends", "[a] 2 was here"]


def test_what_the_server_itself_writes_passes_as_it_is() -> None:
    log, out, _ = logs()
    log.stdout.write("no newline")
    assert out.getvalue() == "no newline"


def test_each_request_ends_in_one_line_with_its_outcome() -> None:
    log, _, err = logs()
    with log.request(route("fine")):
        pass
    with pytest.raises(ZeroDivisionError), log.request(route("bad")):
        raise ZeroDivisionError
    lines = [json.loads(line) for line in err.getvalue().splitlines()]
    assert [(line["function"], line["outcome"]) for line in lines] == [("api.fine", "success"), ("api.bad", "error")]
    assert all(line["run_ms"] >= 0 for line in lines)
