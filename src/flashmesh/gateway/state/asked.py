"""One GraphQL request while it is answered: who asks, what it may see, and how much of it."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.state.builds import Builds
from flashmesh.gateway.state.records import Env, Environment, Manifest, Served
from flashmesh.gateway.state.visible import Visible

T = TypeVar("T")
MAX_MANIFESTS: Final = 20
"""Of one request: each is some 100 KB, and every one of up to 1000 fields could be another."""
MAX_ITEMS: Final = 10_000
"""Of all lists of one answer: some 0.2 s, in which the server does nothing else."""
MAX_PUBLISHED_BYTES: Final = 8 * 1024 * 1024
"""Of a manifest that a client writes."""


class Deployer(Protocol):
    """Who brings environments to builds."""

    async def deploy(
        self, app: str, environment: str, build: str, *, given: Env, replace: bool = False, by: str = ""
    ) -> Any:
        """Begin a deployment of a build that is here. Resources that are not in `given` keep their values of
        environment variables. Raises DeploymentRunning, BuildNotFound."""
        ...


class AnswerTooLarge(FlashmeshError):
    """The answer would be too large. Ask for less at once."""

    code = "ANSWER_TOO_LARGE"
    status = 400


class NoDeployer(FlashmeshError):
    """This server deploys nothing. Use `flash deploy`."""

    code = "NOT_DEPLOYABLE"
    status = 503


@dataclasses.dataclass(slots=True, kw_only=True)
class Asked:
    """One request. `root` is the server's address as its client knows it, without a slash at its end."""

    visible: Visible
    builds: Builds
    deployer: Deployer | None
    root: str
    environment: str | None = None
    """The environment it says it means, by name."""
    manifests: int = 0
    """How many its answer holds so far."""
    items: int = 0
    """How many its lists hold so far."""
    _served: dict[str, list[Served]] = dataclasses.field(default_factory=dict)

    def manifest(self, read: Callable[[], Manifest]) -> Manifest:
        self.manifests += 1
        if self.manifests > MAX_MANIFESTS:
            raise AnswerTooLarge(f"At most {MAX_MANIFESTS} manifests are answered at once. Ask for less.")
        return read()

    def listed(self, found: list[T]) -> list[T]:
        """A list of the answer. Raises AnswerTooLarge."""
        self.items += len(found)
        if self.items > MAX_ITEMS:
            raise AnswerTooLarge(f"The answer's lists hold more than {MAX_ITEMS} items. Ask for less at once.")
        return found

    def served(self, environment: Environment) -> list[Served]:
        """What is recorded for an environment; read once for each request."""
        if environment.id not in self._served:
            self._served[environment.id] = self.visible.manager.served(environment.id)
        return self._served[environment.id]

    @property
    def by(self) -> str:
        return "" if self.visible.holder is None else self.visible.holder.name


def moment(at: float | None) -> str | None:
    """RFC 3339, to the second."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
