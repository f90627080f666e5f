"""Closing lines come behind the answers, together and in their order."""

import asyncio
import io
import json

from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.dev.session.closings import Closings


def test_what_ends_in_one_turn_is_printed_behind_what_that_turn_has_to_do() -> None:
    async def main() -> None:
        err = io.StringIO()
        closings = Closings(LogPrinter(err=err, pretty=False))
        asyncio.get_running_loop().call_soon(lambda: err.write("answer\n"))
        closings.add({"execution": "e1"})
        closings.add({"execution": "e2"})
        assert err.getvalue() == ""
        await asyncio.sleep(0)
        first, *lines = err.getvalue().splitlines()
        assert first == "answer"
        assert [json.loads(line)["execution"] for line in lines] == ["e1", "e2"]

    asyncio.run(main())


def test_lines_before_something_else_are_printed_first_and_once() -> None:
    async def main() -> None:
        err = io.StringIO()
        closings = Closings(LogPrinter(err=err, pretty=False))
        closings.add({"execution": "e1"})
        closings.flush()
        err.write("notice\n")
        await asyncio.sleep(0)
        line, notice = err.getvalue().splitlines()
        assert (json.loads(line)["execution"], notice) == ("e1", "notice")

    asyncio.run(main())
