"""Deployed endpoints on this machine, with real processes: what callers see while they are deployed and things die."""

import asyncio
import contextlib
import dataclasses
import http.client
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from local_deployed_fixtures import ENDPOINT, House, play, post, post_unix, short_folder

from flashmesh.deploy.target import DeployFailed
from flashmesh.gateway.data import start_time


def is_there(path: str) -> bool:
    return Path(path).exists()


def lives(pid: int) -> bool:
    return start_time(pid) != ""


def test_a_deployed_endpoint_answers_by_queue_socket_and_tcp() -> None:
    """At the address that deploying returns, without a server in between."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        assert address.endpoint_url is not None and address.endpoint_url.startswith("http://127.0.0.1:")
        status, answer = await asyncio.to_thread(post, address, arguments={"name": "ada"})
        assert (status, answer["output"]["hello"]) == (200, "ada")
        assert (await asyncio.to_thread(post_unix, address))[0] == 200
        assert (await house.value())["version"] == 1

    play(story)


def test_a_build_that_does_not_import_leaves_the_one_before_serving() -> None:
    """Deploying says why; a first one that fails leaves nothing."""

    async def story(house: House) -> None:
        with pytest.raises(DeployFailed, match=r"m\.py.*broken on purpose"):
            await house.deploy(0, more="\nraise RuntimeError('broken on purpose')\n")
        assert house.deployments.sockets() == {}
        address = await house.deploy(1)
        assert (await house.value())["version"] == 1
        for _ in range(2):
            with pytest.raises(DeployFailed, match="broken on purpose"):
                await house.deploy(2, more="\nraise RuntimeError('broken on purpose')\n")
            assert (await house.value())["version"] == 1
        assert await house.deploy(3) == address
        assert (await house.value())["version"] == 3
        assert (await asyncio.to_thread(post, address))[1]["output"]["version"] == 3

    play(story)


def test_32_clients_lose_no_call_through_ten_deploys() -> None:
    """By TCP, by socket and through the queue, all the time; every call is answered by some build, the last by the
    last."""

    async def story(house: House) -> None:
        address = await house.deploy(0)
        done = asyncio.Event()
        answers: list[tuple[int, Any]] = []

        async def call_on(road: Any) -> None:
            loop = asyncio.get_running_loop()
            while not done.is_set():
                answers.append(await loop.run_in_executor(threads, road, address))

        async def queue_on() -> None:
            while not done.is_set():
                answers.append((200, {"output": await house.value()}))

        with ThreadPoolExecutor(16) as threads:
            roads = [call_on(road) for road in (post, post_unix) for _ in range(8)]
            clients = [asyncio.create_task(client) for client in [*roads, *(queue_on() for _ in range(16))]]
            for version in range(1, 11):
                await house.deploy(version)
            done.set()
            await asyncio.gather(*clients)
        assert {status for status, _ in answers} == {200}, [answer for answer in answers if answer[0] != 200][:3]
        assert len(answers) > 100
        assert (await asyncio.to_thread(post, address))[1]["output"]["version"] == 10

    play(story)


def test_a_call_that_runs_during_an_update_ends_on_its_build(tmp_path: Path) -> None:
    """While new calls are answered by the new one."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        end = tmp_path / "end"
        running = asyncio.create_task(asyncio.to_thread(post, address, "/wait_for/run_sync", {"path": str(end)}))
        await house.until(Path(f"{end}.begun").exists)
        await house.deploy(2)
        assert (await house.value())["version"] == 2
        end.touch()
        assert (await running)[1]["output"] == 1

    play(story)


def test_a_gpu_resource_is_not_served_where_its_gpu_is_not_unless_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deploying says what is missing and how to allow it; nothing is started meanwhile."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    async def story(house: House) -> None:
        house.write(1)
        wanted = house.wanted()
        config = dataclasses.replace(wanted.resource.config, gpus=("ADA_24",), gpu_count=1)
        wanted = dataclasses.replace(wanted, resource=dataclasses.replace(wanted.resource, config=config))
        with pytest.raises(DeployFailed, match=r"ADA_24.*this machine has none.*--allow-cpu"):
            await house.deployments.deploy(wanted)
        assert house.deployments.sockets() == {}
        await house.deployments.deploy(dataclasses.replace(wanted, allow_cpu=True))
        assert (await house.value())["version"] == 1

    play(story)


def test_a_resource_of_another_target_is_not_served_here_instead() -> None:
    """It would not be where it is looked for. What exists is said; nothing is started."""

    async def story(house: House) -> None:
        house.write(1)
        wanted = house.wanted()
        for target, served in (("kubernetes", False), ("local", True)):
            config = dataclasses.replace(wanted.resource.config, target=target)
            named = dataclasses.replace(wanted, resource=dataclasses.replace(wanted.resource, config=config))
            if served:
                await house.deployments.deploy(named)
                assert (await house.value())["version"] == 1
            else:
                with pytest.raises(DeployFailed, match=r"'kubernetes', which this server does not have.*only `local`"):
                    await house.deployments.deploy(named)
                assert house.deployments.sockets() == {}

    play(story)


def test_a_start_up_hook_that_fails_leaves_the_build_before_serving() -> None:
    """Where workers ran, or are always wanted, deploying waits for the first one to be ready."""
    hook = "\nfrom flashmesh import worker_start\n\n\n@worker_start\ndef connect():\n    raise OSError('no database')\n"

    async def story(house: House) -> None:
        with pytest.raises(DeployFailed, match="before it was ready") as failed:
            await house.deploy(0, settings="workersMin=1, workersMax=2", more=hook)
        assert "no database" in "".join(failed.value.__notes__)
        address = await house.deploy(1, settings="workersMin=1, workersMax=2")
        with pytest.raises(DeployFailed, match="before it was ready"):
            await house.deploy(2, settings="workersMin=1, workersMax=2", more=hook)
        assert (await house.value())["version"] == 1
        assert (await asyncio.to_thread(post, address))[1]["output"]["version"] == 1

    play(story)


def test_a_failed_update_of_an_endpoint_at_rest_leaves_peers_the_build_before() -> None:
    """No template of it ran; the one that tried the new build has left, and the next call starts the old one."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        await house.crash()
        os.kill(house.keeper, signal.SIGKILL)
        await house.start()
        house.write(1)
        before = house.wanted(address=address.endpoint_url)
        assert await house.deployments.adopt(before) == address
        with pytest.raises(DeployFailed, match="broken"):
            await house.deploy(2, more="\nraise RuntimeError('broken')\n")
        assert (await asyncio.to_thread(post, address))[1]["output"]["version"] == 1
        assert (await house.value())["version"] == 1

    play(story)


def test_the_next_server_takes_endpoints_over_and_restarts_none() -> None:
    """They answer while there is none; then calls by the queue reach the same process."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        pid = (await house.value())["pid"]
        await house.crash()
        assert (await asyncio.to_thread(post, address))[1]["output"]["pid"] == pid
        await house.start()
        assert await house.deployments.adopt(house.wanted(address=address.endpoint_url)) == address
        await house.deployments.settle()
        assert (await house.value())["pid"] == pid
        assert (await asyncio.to_thread(post_unix, address))[1]["output"]["pid"] == pid

    play(story)


def test_endpoints_of_a_server_that_was_stopped_return_at_their_address() -> None:
    """Stopping ends them; the first connection at the old port makes a worker again."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        keeper = house.keeper
        await house.stop()
        await house.until(lambda: not lives(keeper))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(post, address)
        await house.start()
        assert await house.deployments.adopt(house.wanted(address=address.endpoint_url)) == address
        assert (await asyncio.to_thread(post, address))[0] == 200

    play(story)


def test_an_endpoint_that_nobody_adopts_is_ended() -> None:
    async def story(house: House) -> None:
        address = await house.deploy(1)
        await house.crash()
        await house.start()
        await house.deployments.settle()
        await house.until(lambda: not Path(address.peer_urls[0].removeprefix("unix:")).exists())

    play(story)


@pytest.mark.parametrize("how", ["the next start", "the next deploy"])
def test_a_port_that_another_program_has_is_told_and_the_socket_serves(how: str) -> None:
    """Free again, it is the endpoint's again."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        assert address.endpoint_url is not None
        port = int(address.endpoint_url.rpartition(":")[2])
        await house.stop()
        with socket.create_server(("127.0.0.1", port)):
            await house.start()
            with pytest.raises(DeployFailed, match=f"Port {port} .*cannot be used"):
                await house.deployments.adopt(house.wanted(address=address.endpoint_url))
            assert (await house.value())["version"] == 1
            assert (await asyncio.to_thread(post_unix, address))[0] == 200
            with pytest.raises(DeployFailed, match=f"Port {port} .*cannot be used"):
                await house.deploy(2)
        if how == "the next deploy":
            assert await house.deploy(3) == address
        else:
            await house.crash()
            await house.start()
            assert await house.deployments.adopt(house.wanted(address=address.endpoint_url)) == address
        assert (await asyncio.to_thread(post, address))[0] == 200

    play(story)


@pytest.mark.parametrize("victim", ["worker", "template", "keeper"])
def test_an_endpoint_whose_processes_are_killed_heals_at_its_address(victim: str) -> None:
    async def story(house: House) -> None:
        address = await house.deploy(1)
        pid = (await house.value())["pid"]
        template = next(link.peer_pid for link in house.link._links if link.state.role == "template")
        os.kill({"worker": pid, "template": template, "keeper": house.keeper}[victim], signal.SIGKILL)

        async def answers() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, answer = await asyncio.to_thread(post, address)
                return status == 200 and answer["output"]["pid"] != pid
            return False

        async with asyncio.timeout(30):
            while not await answers():
                continue
        assert (await house.value())["version"] == 1

    play(story)


def test_a_template_killed_while_a_build_is_offered_to_it_does_not_end_the_deploy(tmp_path: Path) -> None:
    """It is offered again to the next one."""
    gate = tmp_path / "gate"
    waits = (
        f"\nfrom pathlib import Path as _P\n_P('{gate}.begun').touch()\n"
        f"while not _P('{gate}').exists():\n    time.sleep(0.005)\n"
    )

    async def story(house: House) -> None:
        await house.deploy(1)
        await house.value()
        house.write(2, more=waits)
        wanted = house.wanted()
        deploying = asyncio.create_task(house.deployments.deploy(wanted))
        await house.until(Path(f"{gate}.begun").exists)
        template = next(link.peer_pid for link in house.link._links if link.state.role == "template")
        os.kill(template, signal.SIGKILL)
        gate.touch()
        await deploying
        assert (await house.value())["version"] == 2

    play(story)


def test_worker_counts_change_in_place() -> None:
    """No worker is replaced; more may come, and those that need not stay leave."""

    async def story(house: House) -> None:
        address = await house.deploy(1, settings="workersMin=1, workersMax=1")
        pid = (await house.value())["pid"]
        house.write(1, settings="workersMin=3, workersMax=4")
        build = house.parts.dispatcher.plan(ENDPOINT).build
        wanted = dataclasses.replace(house.wanted(), build=build)
        assert await house.deployments.resize(wanted) == address

        def workers() -> set[int]:
            return {worker.peer_pid for worker in house.link._links if worker.state.role == "worker"}

        await house.until(lambda: len(workers()) == 3)
        assert pid in workers()
        house.write(1, settings="workersMin=1, workersMax=2")
        await house.deployments.resize(dataclasses.replace(house.wanted(), build=build))
        await house.until(lambda: len(workers()) == 1)
        assert (await house.value())["version"] == 1

    play(story)


def test_workers_that_must_stay_are_made_of_an_endpoint_at_rest() -> None:
    """By a change of its counts, and by a start."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        await house.stop()
        await house.start()
        before = house.wanted(address=address.endpoint_url)
        await house.deployments.adopt(before)
        house.write(1, settings="workersMin=2, workersMax=2")
        wanted = dataclasses.replace(house.wanted(address=address.endpoint_url), build=before.build)
        await house.deployments.resize(wanted)

        def workers() -> int:
            return sum(link.state.role == "worker" for link in house.link._links)

        await house.until(lambda: workers() == 2)
        await house.stop()
        await house.start()
        await house.deployments.adopt(wanted)
        await house.until(lambda: workers() == 2)

    play(story)


def test_a_removed_endpoint_leaves_nothing() -> None:
    """No socket, no port, no process; and removing it again is nothing."""

    async def story(house: House) -> None:
        address = await house.deploy(1)
        pid = (await house.value())["pid"]
        await house.deployments.remove(ENDPOINT)
        assert not lives(pid)
        assert not is_there(address.peer_urls[0].removeprefix("unix:"))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(post, address)
        await house.deployments.remove(ENDPOINT)

    play(story)


def test_a_foreign_page_and_a_wrong_token_are_refused_at_the_tcp_address() -> None:
    """A program of this machine needs no token; one that shows one is judged by it."""

    async def story(house: House) -> None:
        address = await house.deploy(1)

        async def status(**headers: str) -> int:
            return (await asyncio.to_thread(post, address, **headers))[0]

        def bearer(token: str) -> str:
            return f"Bearer {token}"

        assert await status() == 200
        assert await status(Origin="https://evil.example") == 403
        assert await status(Sec_Fetch_Site="cross-site") == 403
        assert await status(Host="evil.example") == 403
        own = house.token("peer", app="shop", environment="production")
        assert await status(Authorization=bearer(own), Host="node-7") == 200
        assert await status(Authorization=bearer(own[:-4] + "AAAA")) == 401
        assert await status(Authorization=bearer(house.token("peer", app="other", environment="production"))) == 403
        assert await status(Authorization=bearer(house.token("metrics"))) == 403
        assert await status(Authorization=bearer(house.token("admin")), Host="node-7") == 200

    play(story)


def test_a_server_without_deployments_starts_no_keeper_for_them() -> None:
    async def story(house: House) -> None:
        await house.deployments.settle()
        await house.deployments.remove(ENDPOINT)
        assert not house.pointer.exists()
        await house.deploy(1)
        await house.stop()
        await house.start()
        await house.deployments.settle()
        assert house.keeper_if_any() is None, "its place is there, for the address to return to"

    play(story)


SERVER = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from local_deployed_fixtures import House
async def main():
    house = House(Path(sys.argv[1]))
    await house.start()
    address = await house.deploy(1, settings="workersMax=1")
    print(address.endpoint_url, (await house.value())["pid"], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_server_killed_with_9_leaves_endpoints_that_answer_and_the_next_one_adopts_them() -> None:
    """Woken from nothing as well: the worker is killed too while there is no server. Then the address is the same, the
    process as well, and an update rolls as ever."""

    async def scene(folder: Path) -> None:
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, str(folder), stdout=asyncio.subprocess.PIPE
        )
        assert server.stdout is not None
        url, first = (await server.stdout.readline()).decode().split()
        server.kill()
        await server.wait()
        assert (await asyncio.to_thread(post, url))[1]["output"]["pid"] == int(first)
        os.kill(int(first), signal.SIGKILL)
        pid = (await asyncio.to_thread(post, url))[1]["output"]["pid"]
        assert pid != int(first)
        house = House(folder)
        house.builds, house.root = 1, folder / "build-1"
        await house.start()
        try:
            address = await house.deployments.adopt(house.wanted(address=url))
            assert address.endpoint_url == url
            assert (await house.value())["pid"] == pid
            assert await house.deploy(2) == address
            assert (await asyncio.to_thread(post, url))[1]["output"]["version"] == 2
        finally:
            await house.stop()

    with short_folder() as folder:
        asyncio.run(scene(folder))


def test_a_server_killed_while_a_build_is_on_its_way_leaves_the_one_before() -> None:
    """The next server adopts what serves; offered again, the build is served."""
    waits = "\nPath('{gate}.begun').touch()\nwhile not Path('{gate}').exists():\n    time.sleep(0.005)\n"

    async def story(house: House) -> None:
        address = await house.deploy(1)
        pid = (await house.value())["pid"]
        before = house.wanted(address=address.endpoint_url)
        gate = house.folder / "gate"
        deploying = asyncio.create_task(house.deploy(2, more=waits.format(gate=gate)))
        await house.until(Path(f"{gate}.begun").exists)
        await house.crash()
        deploying.cancel()
        await asyncio.gather(deploying, return_exceptions=True)
        assert (await asyncio.to_thread(post, address))[1]["output"]["pid"] == pid
        await house.start()
        assert await house.deployments.adopt(before) == address
        assert (await house.value())["pid"] == pid
        gate.touch()
        assert await house.deployments.deploy(house.wanted()) == address
        assert (await house.value())["version"] == 2

    play(story)
