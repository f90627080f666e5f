"""What an endpoint's template is started with: the environment of its packages, its volumes, the spec that tells both.

Nothing is installed but by `prepare`, which a call asks for; `to_install` says whether that is needed.
"""

from flashmesh.deploy.local.hosted import Hosted
from flashmesh.deploy.local.plans import Surroundings, system_packages_of, worker_spec
from flashmesh.deploy.local.ports import EnvironmentsPort, VolumesPort
from flashmesh.deploy.local.system import missing_system_dependencies
from flashmesh.project.model import ResourceSpec
from flashmesh.worker.spec import WorkerSpec


class Provisions:
    """Args:
    surroundings: what every template of the target is told.
    install: whether `environments` may install anything.
    """

    def __init__(
        self,
        *,
        environments: EnvironmentsPort,
        volumes: VolumesPort,
        surroundings: Surroundings,
        install: bool,
    ) -> None:
        self._environments = environments
        self._volumes = volumes
        self._surroundings = surroundings
        self._install = install

    def to_install(self, endpoint: Hosted) -> bool:
        """Whether packages are missing that nobody has asked to be installed for this endpoint."""
        if not self._install or endpoint.prepared == endpoint.requirements:
            return False
        own, project = endpoint.requirements
        return bool(self._environments.missing((*own, *project)))

    async def prepare(self, endpoint: Hosted) -> None:
        """See to it that its environment is there, and is the one it starts with. Raises EnvironmentFailed."""
        requirements = endpoint.requirements
        if endpoint.prepared != requirements:
            endpoint.site_dirs = await self._environments.prepare(*requirements, endpoint=endpoint.name)
            endpoint.prepared = requirements

    def spec(self, endpoint: Hosted) -> WorkerSpec:
        """What its template is to serve as things are now. Its sockets are open and it is prepared."""
        assert endpoint.sockets is not None
        devices = endpoint.devices
        return worker_spec(
            endpoint.resource,
            endpoint.project,
            endpoint.build,
            generation=endpoint.generation,
            surroundings=self._surroundings,
            socket_path=endpoint.sockets.socket_path,
            site_dirs=endpoint.site_dirs,
            env=self._volumes.arrange(endpoint.resource.config),
            cuda_devices=None if devices is None else devices.cuda_visible_devices,
            placed=endpoint.placed,
            tcp=endpoint.sockets.tcp,
        )


def lacking_system_packages(resource: ResourceSpec) -> list[str]:
    """System packages that it declares and that are not on this machine. Asks the system, which takes a moment."""
    return missing_system_dependencies(system_packages_of(resource))
