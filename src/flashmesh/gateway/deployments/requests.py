"""What the deployment routes take."""

from typing import Any

import msgspec

from flashmesh.gateway.state.records import DEFAULT_ENVIRONMENT

Values = dict[str, dict[str, str]]
"""Values of environment variables: identity of a resource (`file|declared name`) → name → value."""


class DeployRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/deployments`. `rollback`: to an earlier deployment; `build` may then be left out, or be the
    beginning of an id."""

    app: str
    environment: str = DEFAULT_ENVIRONMENT
    build: str | None = None
    env: Values = {}
    source: str = ""
    replace: bool = False
    rollback: bool = False


class PlanRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/plan`. `manifest` is a build's; of a build that is here already its id will do."""

    app: str
    environment: str = DEFAULT_ENVIRONMENT
    manifest: dict[str, Any] | None = None
    build: str | None = None
    env: Values = {}


class UndeployRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/undeploy`: names of resources, or `all` of that environment."""

    app: str
    environment: str = DEFAULT_ENVIRONMENT
    resources: list[str] = []
    all: bool = False
    source: str = ""
