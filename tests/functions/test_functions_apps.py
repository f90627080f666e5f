"""Flash's names for what a server keeps."""

import asyncio

import pytest

from flashmesh.functions.apps import FlashApp, ResourceManager
from flashmesh.functions.errors import ServerRequired
from flashmesh.functions.resources import LiveServerless


def test_a_resource_needs_no_deployment_to_be_ready() -> None:
    async def program() -> None:
        manager = ResourceManager()
        resource = LiveServerless(name="managed")
        assert await manager.get_or_deploy_resource(resource) is resource
        key = await manager.register_resource(resource)
        assert manager.list_all_resources()[key] is resource
        assert manager.find_resources_by_name("managed") == [(key, resource)]
        assert (await manager.undeploy_resource(key))["success"] is True
        assert (await manager.undeploy_resource(key))["success"] is False
        assert manager.find_resources_by_name("managed") == []

    asyncio.run(program())


@pytest.mark.parametrize(
    "question",
    [
        lambda: FlashApp.from_name("a"),
        lambda: FlashApp.create("a"),
        lambda: FlashApp.get_or_create("a"),
        lambda: FlashApp.list(),
        lambda: FlashApp("a").create_environment("e"),
        lambda: FlashApp("a").get_environment_by_name("e"),
        lambda: FlashApp("a").list_environments(),
        lambda: FlashApp("a").list_builds(),
        lambda: FlashApp("a").delete_environment("e"),
    ],
)
def test_an_app_without_a_server_says_what_works_without_one(question: object) -> None:
    with pytest.raises(ServerRequired, match="flash run"):
        asyncio.run(question())  # type: ignore[operator]


def test_hydrating_at_once_needs_a_server_too() -> None:
    with pytest.raises(ServerRequired):
        FlashApp("a", eager_hydrate=True)
    assert FlashApp("a").name == "a"
