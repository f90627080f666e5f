"""What RunPod's own SDK makes of a server: `python runpod_client.py URL` prints one JSON object."""

import asyncio
import json
import sys
import time

import aiohttp
import runpod
from runpod import AsyncioEndpoint


def ask(url: str) -> dict[str, object]:
    runpod.api_key = "any"
    runpod.endpoint_url_base = url + "/v2"
    echo = runpod.Endpoint("work/echo")
    said: dict[str, object] = {"run_sync": echo.run_sync({"input": {"x": 1}}, timeout=30)}
    job = echo.run({"input": {"x": 2}})
    said["output"] = job.output(timeout=30)
    said["status"] = job.status()
    said["stream"] = list(runpod.Endpoint("work/count").run({"input": {"n": 3}}).stream())
    failing = runpod.Endpoint("work/fails").run({"input": {}})
    failing.output(timeout=30)
    said["failed"] = failing.status()
    nap = runpod.Endpoint("work/nap")
    running = nap.run({"input": {"seconds": 60}})
    while running.status() != "IN_PROGRESS":
        time.sleep(0.05)
    waiting = [nap.run({"input": {"seconds": 60}}) for _ in range(4)]
    said["health"] = nap.health()["jobs"]
    said["purged"] = nap.purge_queue()
    said["waiting"] = [one.status() for one in waiting]
    said["cancel"] = running.cancel()["status"]
    said["cancelled"] = running.status()
    said["asyncio"] = asyncio.run(ask_with_asyncio())
    return said


async def ask_with_asyncio() -> object:
    async with aiohttp.ClientSession() as session:
        job = await AsyncioEndpoint("work/echo", session).run({"x": 3})
        return await job.output(timeout=30)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(ask(sys.argv[1])))
