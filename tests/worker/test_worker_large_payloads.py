"""Megabytes to a worker and back over its link: the function gets what the caller gave."""

import dataclasses
import sys

import numpy as np
import pytest
from loader_fixtures import write
from mini_session import MiniSession, run

from flashmesh.functions.config import ResourceConfig
from flashmesh.wire import memfd, values
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.frames import BINARY, MSGPACK, Invoke, Result
from flashmesh.worker.spec import ModuleSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TEMPLATE = [sys.executable, "-P", "-u", "-m", "flashmesh.worker.template.supervisor"]
SOURCE = """
    import os
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="e")

    @remote(resource)
    def doubled(array):
        array *= 2  # it is the function's own
        return array

    @remote(resource)
    def kind(data: bytes):
        return [type(data).__name__, len(data), data[:3].decode()]

    @remote(resource)
    def files():
        return len(os.listdir("/proc/self/fd"))
    """


def test_arrays_and_bytes_of_megabytes_arrive_as_they_were_sent() -> None:
    """An array is the function's own and may be changed; raw bytes are bytes; no call leaves a descriptor behind."""

    async def scenario() -> None:
        async with MiniSession(template=TEMPLATE) as session:
            write(session.folder, {"m.py": SOURCE})
            spec = dataclasses.replace(
                session.spec(),
                modules=[ModuleSpec(module="m", file=str(session.folder / "m.py"))],
                functions=["m.doubled", "m.kind", "m.files"],
                manifest=str(session.folder / "manifest.json"),
                config=ResourceConfig(resource_type="LiveServerless", idle_timeout_s=60).to_dict(),
            )
            await session.start(spec)

            async def call(function: str, payload: bytes, content_type: str = MSGPACK) -> Result:
                await session.until(session.ready, "nobody is ready")
                worker = session.ready()[0]
                session.calls += 1
                execution = f"x{session.calls}"
                session.free[worker] -= 1
                session.workers[worker].send(
                    Invoke(execution, f"m.{function}", content_type=content_type, accept=MSGPACK, payload=payload)
                )
                found = await session.until(lambda: session.answers.get(execution))
                assert isinstance(found, Result), found
                return found

            array = np.arange(memfd.LARGE_BYTES // 4, dtype=np.float64)
            nothing = encode_arguments((), {})
            await call("doubled", encode_arguments((array,), {}))
            before = values.decode((await call("files", nothing)).payload, MSGPACK)
            for _ in range(3):
                result = await call("doubled", encode_arguments((array,), {}))
                got = values.decode(result.payload, MSGPACK)
                assert (got.dtype, got.shape) == (array.dtype, array.shape)
                assert bool((got == array * 2).all())
            raw = await call("kind", b"abc" * memfd.LARGE_BYTES, BINARY)
            assert values.decode(raw.payload, MSGPACK) == ["bytes", 3 * memfd.LARGE_BYTES, "abc"]
            assert values.decode((await call("files", nothing)).payload, MSGPACK) == before

    run(scenario)
