"""What a large argument costs on its way to a process of this machine."""

import contextlib
import multiprocessing
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.measure import Row, in_turns
from flashmesh.wire.arguments import Binder, argument_parts
from flashmesh.wire.connection import BlockingLink
from flashmesh.wire.frames import MSGPACK, AnyFrame, Invoke, Result
from flashmesh.wire.parts import sendable

ARRAY_BYTES = 8 * 1024 * 1024


def _first(array: Any) -> float:
    return float(array[0])


def _link_worker(sock: socket.socket) -> None:
    """The other end as a worker is: an asyncio link under uvloop that maps what is large."""
    import asyncio

    import uvloop

    from flashmesh.wire.connection import Link

    async def serve() -> None:
        over = asyncio.Event()
        binder = Binder(_first)

        def on_frame(link: Link, frame: AnyFrame) -> None:
            assert isinstance(frame, Invoke)
            bound = binder.bind(frame.payload, frame.content_type)
            link.send(Result(frame.execution, payload=str(_first(*bound.args)).encode()))

        link = Link(on_frame, lambda link, error: over.set(), mapped=True)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
        await over.wait()

    uvloop.run(serve())


def _pickle_worker(sock: socket.socket) -> None:
    with sock, sock.makefile("rb") as incoming:
        while header := incoming.read(8):
            (array,) = pickle.loads(incoming.read(int.from_bytes(header, "big")))
            sock.sendall(str(_first(array)).encode())


def _serve(worker: Callable[[socket.socket], None], ready: Connection, sock: socket.socket) -> None:
    ready.send(True)
    worker(sock)


@contextlib.contextmanager
def _process(worker: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A socket whose other end a fresh process serves."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = socket.socketpair()
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(worker, there, theirs))
    process.start()
    theirs.close()
    here.recv()
    try:
        yield ours
    finally:
        ours.close()
        process.join()
        here.close()
        there.close()


def large_argument() -> Row:
    """One call with an array: encoded, sent, decoded as the function would get it, answered."""
    array = np.random.default_rng(0).standard_normal(ARRAY_BYTES // 8)
    with _process(_link_worker) as sock, _process(_pickle_worker) as plain:
        link = BlockingLink(sock)

        def product() -> float:
            begin = time.perf_counter()
            link.send(Invoke("x", "m.f", content_type=MSGPACK, payload=sendable(argument_parts((array,), {}))))
            link.receive(10)
            return time.perf_counter() - begin

        def floor() -> float:
            begin = time.perf_counter()
            data = pickle.dumps((array,), protocol=5)
            plain.sendall(len(data).to_bytes(8, "big") + data)
            plain.recv(100)
            return time.perf_counter() - begin

        ours, theirs = in_turns(product, floor, rounds=31)
        link.close()
    passes = "descriptor" if sys.platform == "linux" else "in pieces"
    return Row(
        "8 MB NumPy argument to a worker's process",
        ours * 1e3,
        "ms",
        "pickle over the socket",
        theirs * 1e3,
        "≤ 0.6× (0.2)",
        passes,
    )


if __name__ == "__main__":
    row = large_argument()
    print(f"{row.name}: {row.value:.2f} ms, {row.ratio:.2f} of {row.floor:.2f} ms")
