"""What the State Manager keeps, as its callers see it. Values of environment variables are in none of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal, NewType

from flashmesh.functions.errors import FlashmeshError

AppId = NewType("AppId", str)
EnvironmentId = NewType("EnvironmentId", str)
DeploymentId = NewType("DeploymentId", str)
Manifest = Mapping[str, Any]
Env = Mapping[str, Mapping[str, str]]
"""Values of environment variables: resource identity → name → value. Never shown."""

Kind = Literal["deploy", "rollback", "undeploy"]
DeploymentStatus = Literal["running", "succeeded", "failed", "interrupted"]
DEFAULT_ENVIRONMENT: Final = "production"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A project as the server knows it. Times are seconds since the epoch, here and below."""

    id: AppId
    name: str
    created_at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A named place of an app that builds are deployed to."""

    id: EnvironmentId
    app: str
    """The app's name."""
    app_id: AppId
    name: str
    created_at: float
    build: str | None
    """The build it was brought to last; None before a deployment, and when nothing serves any more."""
    resources: int
    """How many resources serve, or served and failed to be updated."""
    running: DeploymentId | None
    """The deployment that runs now."""

    @property
    def place(self) -> str:
        """`app/environment`: in messages, and in signatures between its endpoints."""
        return f"{self.app}/{self.name}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One packaging of an app. Its manifest is asked for apart: it may be large."""

    id: str
    app: str
    bytes: int
    """Of the artifact; 0 when it was never uploaded."""
    created_at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One attempt to bring an environment to a build. What it wants and its values are asked for apart."""

    id: DeploymentId
    app: str
    environment: str
    environment_id: EnvironmentId
    number: int
    """Counts the environment's deployments from 1."""
    kind: Kind
    build: str | None
    """None: an undeploy."""
    status: DeploymentStatus
    error: str | None
    source: str
    """Machine and directory it came from; empty: unknown."""
    by: str
    """Name of the token that asked for it; empty: this server itself."""
    started_at: float
    finished_at: float | None

    @property
    def place(self) -> str:
        return f"{self.app}/{self.environment}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where one resource of a deployment stands."""

    resource: str
    state: str
    error: str | None
    at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One resource that is recorded for an environment."""

    identity: str
    name: str
    """Its name in the manifest."""
    entry: dict[str, Any]
    """Its entry of the deployed manifest; `build` in it is the artifact it runs."""
    source: str
    recorded_at: float


class StateError(FlashmeshError):
    """The State Manager refuses."""

    code = "STATE_ERROR"
    status = 409


class AppNotFound(StateError, LookupError):
    """There is no such app. `flash app list` shows them."""

    code = "APP_NOT_FOUND"
    status = 404


class EnvironmentNotFound(StateError, LookupError):
    """There is no such environment. `flash env list` shows them."""

    code = "ENVIRONMENT_NOT_FOUND"
    status = 404


class BuildNotFound(StateError, LookupError):
    """There is no such build of this app. `flash build` makes one and `flash deploy` brings it here."""

    code = "BUILD_NOT_FOUND"
    status = 404


class DeploymentNotFound(StateError, LookupError):
    """There is no such deployment, or it is too old to be remembered."""

    code = "DEPLOYMENT_NOT_FOUND"
    status = 404


class AlreadyExists(StateError):
    """It exists already."""

    code = "ALREADY_EXISTS"


class StillDeployed(StateError):
    """Something is deployed there. `flash undeploy --all` takes it down."""

    code = "STILL_DEPLOYED"


class DeploymentRunning(StateError):
    """Another deployment of this environment runs. Wait for it, or deploy with `--wait`."""

    code = "DEPLOYMENT_RUNNING"

    def __init__(self, running: Deployment) -> None:
        who = f" by {running.by}" if running.by else ""
        origin = f" from {running.source}" if running.source else ""
        super().__init__(
            f"Deployment {running.number} ({running.id}) of {running.place} runs already, begun{who}{origin}. "
            "Wait for it with `--wait`, or look at it with `flash status`."
        )
        self.running = running
        self.details = (f"deployment: {running.id}",)


class DeploymentEnded(StateError):
    """This deployment has ended; its result stays as it is."""

    code = "DEPLOYMENT_ENDED"


class StateDamaged(FlashmeshError):
    """Something that was stored cannot be read, so it is not acted upon."""

    code = "STATE_DAMAGED"
    status = 500
