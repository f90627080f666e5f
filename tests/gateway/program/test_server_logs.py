"""What the server writes never holds a call up, and what is lost is said."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashmesh.gateway.logs import RotatedFiles, ServerLog, Writer, to_descriptor
from flashmesh.wire.frames import Log

FIELDS = {"execution": "e1", "function": "m.f", "outcome": "success", "run_ms": 1.5}


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        for fd in (read, write):
            try:
                os.close(fd)
            except OSError:
                pass


def said(text: str, endpoint: str = "m", stream: str = "stdout") -> Log:
    return Log(endpoint=endpoint, worker="w", stream=stream, text=text, function="m.f", execution="e1", at_ms=0)


def everything(read: int, write: int) -> bytes:
    os.close(write)
    with os.fdopen(os.dup(read), "rb") as file:
        return file.read()


def test_an_invocation_ends_with_one_line_of_json() -> None:
    with pipe() as (read, write):
        log = ServerLog(form="json", out=write, err=write)
        log.event("invocation", FIELDS)
        log.event("template_exited", {"endpoint": "m", "status": -9})
        log.notice("ready", url="http://x")
        log.close()
        lines = [json.loads(line) for line in everything(read, write).splitlines()]
    assert [line["event"] for line in lines] == ["invocation", "template_exited", "notice"]
    assert lines[0]["execution"] == "e1"
    assert lines[0]["at"].endswith("Z")
    assert lines[2]["url"] == "http://x"


def test_for_people_an_invocation_is_a_readable_line() -> None:
    with pipe() as (read, write):
        log = ServerLog(form="pretty", out=write, err=write)
        log.event("invocation", FIELDS)
        log.close()
        text = everything(read, write).decode()
    assert "SUCCESS f" in text
    assert "run 1.5 ms" in text


def test_closing_lines_can_be_left_out() -> None:
    with pipe() as (read, write):
        log = ServerLog(form="json", invocations=False, out=write, err=write)
        log.event("invocation", FIELDS)
        log.close()
        assert everything(read, write) == b""


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    with pipe() as (read, write):
        writer = Writer("test", to_descriptor(write), on_loss=lambda count: b"lost %d\n" % count, limit_bytes=200_000)
        line = b"x" * 999 + b"\n"
        for _ in range(1000):  # the pipe takes 64 KiB, the buffer 200 000 bytes and one batch
            writer.put(line)
        assert writer.dropped > 0
        dropped = writer.dropped
        reader: list[bytes] = []
        done = threading.Thread(target=lambda: reader.append(_read_until(read, b"the last\n")))
        done.start()
        while True:  # as soon as something was read there is room again
            before = writer.dropped
            writer.put(b"the last\n")
            if writer.dropped == before:
                break
        done.join(20)
        writer.close()
    text = b"".join(reader)
    assert text.count(b"x" * 999) == 1000 - dropped
    assert b"lost " in text


def _read_until(fd: int, end: bytes) -> bytes:
    text = b""
    while not text.endswith(end):
        text += os.read(fd, 65536)
    return text


def test_what_cannot_be_written_is_counted_and_nothing_else_happens() -> None:
    with pipe() as (read, write):
        os.close(read)
        writer = Writer("test", to_descriptor(write))
        writer.put(b"for nobody\n")
        writer.close()
        assert writer.dropped == 1


def test_each_endpoint_has_a_file_of_what_it_printed(tmp_path: Path) -> None:
    with pipe() as (read, write):
        log = ServerLog(form="json", files=RotatedFiles(tmp_path, limit_bytes=10_000, keep=2), out=write, err=write)
        log.output(said("hello", "a"))
        log.output(said("über", "b/../c", "stderr"))
        log.close()
        assert b"[f] hello\n" in everything(read, write)
    assert (tmp_path / "a.log").read_text() == "1970-01-01T00:00:00Z stdout hello\n"
    assert (tmp_path / "b_.._c.log").read_text() == "1970-01-01T00:00:00Z stderr über\n"


def test_files_are_rotated_and_only_so_many_kept(tmp_path: Path) -> None:
    files = RotatedFiles(tmp_path, limit_bytes=10, keep=3)
    for number in range(5):
        files.add("a", f"line {number}\n".encode())
    files.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.log": "line 4\n",
        "a.log.1": "line 3\n",
        "a.log.2": "line 2\n",
    }


def test_a_file_goes_on_where_an_earlier_server_stopped(tmp_path: Path) -> None:
    for _ in range(2):
        files = RotatedFiles(tmp_path, limit_bytes=14, keep=2)
        files.add("a", b"line 0\n")
        files.close()
    files = RotatedFiles(tmp_path, limit_bytes=14, keep=2)
    files.add("a", b"line 1\n")
    files.close()
    assert (tmp_path / "a.log").read_text() == "line 1\n"
    assert (tmp_path / "a.log.1").read_text() == "line 0\nline 0\n"


def test_many_endpoints_share_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RotatedFiles, "MOST_OPEN", 2)
    files = RotatedFiles(tmp_path, limit_bytes=100, keep=2)
    before = len(list(Path("/dev/fd").iterdir()))
    for number in [*range(5), *range(5)]:
        files.add(f"e{number}", b"x\n")
    assert len(list(Path("/dev/fd").iterdir())) <= before + 2
    files.close()
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["x\nx\n"] * 5


def test_lines_of_one_moment_are_written_together_and_in_order() -> None:
    async def busy(log: ServerLog) -> None:
        for number in range(300):
            log.event("invocation", {**FIELDS, "attempt": number})
        log.notice("between")
        log.event("invocation", {**FIELDS, "attempt": 300})

    with pipe() as (read, write):
        log = ServerLog(form="json", out=write, err=write)
        asyncio.run(busy(log))
        log.close()
        lines = [json.loads(line) for line in everything(read, write).splitlines()]
    assert [line.get("attempt") for line in lines] == [*range(300), None, 300]
