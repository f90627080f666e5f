"""Flash's names for what a server keeps: apps, and the resources it has deployed."""

from __future__ import annotations

from flashmesh.functions.errors import ServerRequired

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from flashmesh.functions.resources import Resource


class ResourceManager:
    """Flash's list of deployed resources.

    Here nothing has to be deployed before it is called: an endpoint's workers start with the first call. So a resource
    is ready as it is, and the list holds those that were asked for in this process.
    """

    _known: dict[str, Resource] = {}  # noqa: RUF012 - one list per process, as in Flash

    async def get_or_deploy_resource(self, config: Resource) -> Resource:
        """The resource itself. Its workers start with the first call."""
        return self._known.setdefault(self._key(config), config)

    async def register_resource(self, resource: Resource) -> str:
        """Returns the key under which `list_all_resources` has it."""
        self._known[self._key(resource)] = resource
        return self._key(resource)

    def list_all_resources(self) -> dict[str, Resource]:
        return dict(self._known)

    def find_resources_by_name(self, name: str) -> list[tuple[str, Resource]]:
        return [(key, resource) for key, resource in self._known.items() if resource.name == name]

    async def undeploy_resource(self, resource_id: str, *_: Any, **__: Any) -> dict[str, Any]:
        """Forget a resource. Its workers leave by themselves when they are idle."""
        known = self._known.pop(resource_id, None)
        if known is None:
            return {"success": False, "name": resource_id, "message": f"{resource_id!r} is not known here."}
        return {"success": True, "name": known.name, "message": f"{known.name!r} is forgotten."}

    def _key(self, resource: Resource) -> str:
        return f"{type(resource).__name__}:{resource.name}"


class FlashApp:
    """An app on a server. Every method that needs the server raises ServerRequired while there is none."""

    def __init__(self, name: str, id: str | None = "", eager_hydrate: bool = False) -> None:
        self.name = name
        self.id = id
        self.resources: dict[str, Resource] = {}
        if eager_hydrate:
            self._without_server("FlashApp(eager_hydrate=True)")

    def _without_server(self, what: str) -> NoReturn:
        raise ServerRequired(
            f"{what} needs a server that keeps apps. To run functions here none is needed: `flash run`."
        )

    async def create_environment(self, environment_name: str) -> dict[str, Any]:
        self._without_server(f"Creating environment {environment_name!r}")

    async def get_environment_by_name(self, environment_name: str) -> dict[str, Any]:
        self._without_server(f"Environment {environment_name!r}")

    async def list_environments(self) -> list[dict[str, Any]]:
        self._without_server("Listing environments")

    async def list_builds(self) -> list[dict[str, Any]]:
        self._without_server("Listing builds")

    async def delete_environment(self, environment_name: str) -> bool:
        self._without_server(f"Deleting environment {environment_name!r}")

    @classmethod
    async def from_name(cls, app_name: str) -> FlashApp:
        cls(app_name)._without_server(f"App {app_name!r}")

    @classmethod
    async def create(cls, app_name: str) -> FlashApp:
        cls(app_name)._without_server(f"Creating app {app_name!r}")

    @classmethod
    async def get_or_create(cls, app_name: str) -> FlashApp:
        cls(app_name)._without_server(f"App {app_name!r}")

    @classmethod
    async def list(cls) -> list[dict[str, Any]]:
        cls("")._without_server("Listing apps")
