"""Deployed endpoints on this machine, with real processes: what callers see while they are deployed and things die."""

import asyncio

import pytest
from deployed_fixtures import House, play, post, post_unix

from flashmesh.deploy.target import DeployFailed


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
