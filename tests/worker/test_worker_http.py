"""The face's HTTP: what a request may be, and how long it may take."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import SettingsError
from flashmesh.worker.callables import Callables
from flashmesh.worker.context import WorkerContext
from flashmesh.worker.face.face import About, Face, Limits
from flashmesh.worker.face.http import RequestReader, answer, max_body_bytes
from flashmesh.worker.records import RecordTable
from flashmesh.worker.runner import Runner


@given(st.binary(max_size=2000), st.integers(1, 64))
def test_a_request_is_the_same_however_it_is_cut(body: bytes, size: int) -> None:
    """Method, path, headers and body do not depend on how the bytes arrive."""
    data = b"POST /a%%20b/run_sync?x=1 HTTP/1.1\r\nX-Name: Value\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    reader = RequestReader()
    for at in range(0, len(data), size):
        assert not reader.complete
        reader.feed(data[at : at + size])
    assert reader.complete
    assert (reader.method, reader.path, reader.headers["x-name"], reader.body) == (
        "POST",
        "/a%20b/run_sync",
        "Value",
        body,
    )


def test_an_answer_says_its_length_and_closes() -> None:
    """One call per connection."""
    head, _, body = answer(429, b"no", "text/plain", "Retry-After: 2\r\n").partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 429 Too Many Requests"
    assert {b"Content-Length: 2", b"Connection: close", b"Retry-After: 2"} <= set(head.split(b"\r\n"))
    assert body == b"no"


@pytest.mark.parametrize("text", ["many", "0", "-1", "1e3"])
def test_a_body_limit_that_is_no_size_is_an_error_that_names_the_variable(text: str) -> None:
    """Unset means 64 MiB."""
    with pytest.raises(SettingsError, match="FLASH_MAX_BODY_BYTES"):
        max_body_bytes({"FLASH_MAX_BODY_BYTES": text})
    assert max_body_bytes({}) == 64 << 20
    assert max_body_bytes({"FLASH_MAX_BODY_BYTES": "10"}) == 10


def with_face(limits: Limits, scenario: Callable[[str, "asyncio.Queue[int]"], Awaitable[None]], path: str) -> None:
    """A face without functions in this process's loop; the scenario is told of each change of its one slot."""

    async def run() -> None:
        table = RecordTable.create(workers=1, slots=2)
        read, write = os.pipe()
        context = WorkerContext(
            index=0,
            worker_id="e/1.0-1",
            generation=1,
            record=table.record(0),
            listen_fd=-1,
            reentrant_fd=None,
            notify_fd=write,
            session_fd=read,
            loaded=None,
        )
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            free: asyncio.Queue[int] = asyncio.Queue()
            told = lambda slots, by_link: free.put_nowait(slots)  # noqa: E731
            runner = Runner(context=context, limit=1, on_free=told, on_idle=lambda: None)
            about = About(endpoint="e", build="b", worker="w")
            face = Face(listener, runner=runner, callables=Callables([]), about=about, limits=limits)
            face.update()
            await scenario(path, free)
            face.close()
            await face.closed()
        os.close(read)
        os.close(write)
        table.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sent", "part"),
    [(b"POST /run_sync HTTP/1.1\r\n", b"head"), (b"POST /run_sync HTTP/1.1\r\nContent-Length: 5\r\n\r\n12", b"body")],
)
def test_a_request_that_dawdles_is_refused_and_its_slot_given_back(
    sent: bytes, part: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A slow client cannot hold a worker."""

    async def scenario(path: str, free: "asyncio.Queue[int]") -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent)
        told = await asyncio.wait_for(reader.read(), 20)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert part in told
        assert [await free.get(), await free.get()] == [0, 1]
        writer.close()

    folder = tmp_path_factory.mktemp("h")
    with_face(Limits(head_s=0.05, body_s=0.05, linger_s=0.05), scenario, os.path.relpath(folder / "s"))


def test_a_caller_that_leaves_in_the_middle_gives_its_slot_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Half a request and a hang-up."""

    async def scenario(path: str, free: "asyncio.Queue[int]") -> None:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /run_sync")
        assert await free.get() == 0
        writer.close()
        assert await free.get() == 1

    with_face(Limits(), scenario, os.path.relpath(tmp_path_factory.mktemp("h") / "s"))
