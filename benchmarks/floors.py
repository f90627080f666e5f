"""The floors: what the same job costs without us."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ECHO_APP = """
import msgspec
decode, encode = msgspec.json.decode, msgspec.json.encode

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    value = decode(body)["input"] if body else None
    answer = encode({"output": value})
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]})
    await send({"type": "http.response.body", "body": answer})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_200(url: str, process: subprocess.Popen[bytes], limit: float = 20.0) -> None:
    until = time.perf_counter() + limit
    while time.perf_counter() < until:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}") from None
        time.sleep(0.002)
    raise TimeoutError(url)


class Bare(NamedTuple):
    """A running uvicorn."""

    port: int
    pid: int


@contextmanager
def bare_uvicorn(folder: Path) -> Iterator[int]:
    """As `bare_server`; gives its port."""
    with bare_server(folder) as bare:
        yield bare.port


@contextmanager
def bare_server(folder: Path) -> Iterator[Bare]:
    """One process of uvicorn that answers the same bytes itself."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "echo_app.py").write_text(ECHO_APP)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "echo_app:app",
        "--port",
        str(port),
        "--log-level",
        "error",
        "--no-access-log",
    ]
    process = subprocess.Popen(command, cwd=folder)
    try:
        wait_for_200(f"http://127.0.0.1:{port}/", process)
        yield Bare(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def fork_and_answer() -> float:
    """Seconds from fork to one byte read back from the child: no framework, nothing imported."""
    ours, theirs = socket.socketpair()
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        theirs.send(b"1")
        os._exit(0)
    ours.recv(1)
    taken = time.perf_counter() - begin
    os.waitpid(child, 0)
    ours.close()
    theirs.close()
    return taken
