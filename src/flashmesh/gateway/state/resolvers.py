"""What answers each field of the GraphQL schema."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from flashmesh.functions.errors import FlashmeshError, PayloadTooLarge
from flashmesh.gateway.state.asked import MAX_PUBLISHED_BYTES, Asked, NoDeployer, moment
from flashmesh.gateway.state.builds import Ticket
from flashmesh.gateway.state.records import (
    App,
    AppId,
    Build,
    Deployment,
    Environment,
    EnvironmentNotFound,
    Manifest,
)
from flashmesh.gateway.state.visible import Visible

# Queries


def _myself(_: Any, info: Any) -> Asked:
    return _asked(info)


def _flash_app(_: Any, info: Any, flashAppId: str) -> App:  # noqa: N803 - Flash's names, here and below
    return _asked(info).visible.app_of_id(flashAppId)


def _flash_app_by_name(_: Any, info: Any, flashAppName: str) -> App:  # noqa: N803
    return _asked(info).visible.app(flashAppName)


def _flash_environment(_: Any, info: Any, flashEnvironmentId: str) -> Environment:  # noqa: N803
    return _asked(info).visible.environment_of_id(flashEnvironmentId)


def _flash_environment_by_name(_: Any, info: Any, input: Mapping[str, Any]) -> Environment:
    visible = _asked(info).visible
    id, name = input.get("flashAppId"), input.get("flashAppName")
    if not id and not name:
        scope = visible.manager.scope(None, input["name"], visible.holder)
        return visible.environment(scope.app, scope.environment)
    app = visible.app_of_id(id) if id else visible.app(str(name))
    return visible.environment(app.name, input["name"])


def _flash_build(_: Any, info: Any, flashBuildId: str, flashEnvironmentId: str | None = None) -> Any:  # noqa: N803
    visible = _asked(info).visible
    if flashEnvironmentId is None:
        return visible.build(flashBuildId)
    environment = visible.environment_of_id(flashEnvironmentId)
    return InEnvironment(visible.build(flashBuildId, environment.app), environment)


@dataclasses.dataclass(frozen=True, slots=True)
class InEnvironment:
    """A build, asked for as what an environment was brought to."""

    build: Build
    environment: Environment


# Fields


def _user_id(asked: Asked, info: Any) -> str:
    return asked.by or "local"


def _apps(_: Any, info: Any) -> list[App]:
    asked = _asked(info)
    return asked.listed(asked.visible.apps())


def _all_endpoints(asked: Asked, info: Any) -> list[dict[str, Any]]:
    visible = asked.visible
    return [
        endpoint
        for app in visible.apps()
        for environment in visible.environments(app.name)
        for endpoint in _endpoints(environment, info)
    ]


def _app_environments(app: App, info: Any) -> list[Environment]:
    asked = _asked(info)
    return asked.listed(asked.visible.environments(app.name))


def _app_builds(app: App, info: Any) -> list[Build]:
    asked = _asked(info)
    return asked.listed(asked.visible.manager.builds(app.name))


def _state(environment: Environment, info: Any) -> str:
    return state_of(environment, _statuses(environment, info))


def state_of(environment: Environment, statuses: list[str]) -> str:
    """One word for an environment whose resources stand so."""
    if environment.running is not None:
        return "DEPLOYING"
    if not statuses:
        return "EMPTY"
    return "FAILED" if "failed" in statuses else "HEALTHY"


def _statuses(environment: Environment, info: Any) -> list[str]:
    return [str(one.entry.get("status", "")) for one in _asked(info).served(environment)]


def _active_build(environment: Environment, info: Any) -> InEnvironment | None:
    if environment.build is None:
        return None
    return InEnvironment(_asked(info).visible.build(environment.build, environment.app), environment)


def _active_artifact(environment: Environment, info: Any) -> dict[str, Any] | None:
    if environment.build is None:
        return None
    url = f"{_asked(info).root}/v1/builds/{environment.build}/artifact"
    return {"objectKey": environment.build, "downloadUrl": url, "expiresAt": None}


def _environment_manifest(environment: Environment, info: Any) -> Manifest:
    asked = _asked(info)
    return asked.manifest(lambda: asked.visible.manager.manifest(environment.app, environment.name))


def _endpoints(environment: Environment, info: Any) -> list[dict[str, Any]]:
    asked = _asked(info)
    return [
        {
            "id": str(one.entry.get("endpoint_id") or one.identity),
            "name": one.name,
            "url": one.entry.get("endpoint_url"),
            "status": one.entry.get("status"),
            "error": one.entry.get("error"),
            "flashEnvironmentId": environment.id,
        }
        for one in asked.listed(asked.served(environment))
    ]


def _volumes(environment: Environment, info: Any) -> list[dict[str, str]]:
    names: set[str] = set()
    for one in _asked(info).served(environment):
        config = one.entry.get("config") or {}
        declared = [config.get("network_volume"), *(config.get("network_volumes") or ())]
        names |= {volume["name"] for volume in declared if isinstance(volume, dict) and volume.get("name")}
    return [{"id": name, "name": name} for name in sorted(names)]


def _deployments(environment: Environment, info: Any, limit: int | None = None) -> list[Deployment]:
    asked = _asked(info)
    found = asked.visible.manager.deployments(environment.app, environment.name)
    return asked.listed(found if limit is None else found[: max(0, limit)])


def _build_manifest(build: Build | InEnvironment, info: Any) -> Manifest:
    asked = _asked(info)
    if isinstance(build, InEnvironment):
        return asked.manifest(lambda: manifest_of(asked.visible, build.build, build.environment))
    place = asked.visible.place_of(build, asked.environment)
    return asked.manifest(lambda: manifest_of(asked.visible, build, place))


def manifest_of(visible: Visible, build: Build, place: Environment | None) -> Manifest:
    """A build's manifest: what serves, where it is deployed; else what a client wrote over it; else as it was built.

    To what serves is added what a client of Flash's wrote and we do not know.
    """
    manager = visible.manager
    published = manager.published(build.app, build.id)
    if place is None or place.build != build.id:
        return published or manager.build_manifest(build.app, build.id)
    served = manager.manifest(place.app, place.name)
    if published is None:
        return served
    theirs = published.get("resources")
    entries = theirs if isinstance(theirs, dict) else {}
    resources = {
        name: {**(entries[name] if isinstance(entries.get(name), dict) else {}), **entry}
        for name, entry in served["resources"].items()
    }
    return {**published, **served, "resources": resources}


def _of_build(read: Callable[[Build], Any]) -> Callable[[Build | InEnvironment, Any], Any]:
    return lambda build, info: read(build.build if isinstance(build, InEnvironment) else build)


def _build_app(build: Build | InEnvironment, info: Any) -> str:
    app = build.build.app if isinstance(build, InEnvironment) else build.app
    return _asked(info).visible.manager.app(app).id


# Mutations


async def _create_app(_: Any, info: Any, input: Mapping[str, Any]) -> App:
    visible = _asked(info).visible
    visible.may_touch(input["name"])
    return await visible.manager.create_app(input["name"])


async def _create_environment(_: Any, info: Any, input: Mapping[str, Any]) -> Environment:
    visible = _asked(info).visible
    app = visible.app_of_id(input["flashAppId"])
    visible.may_touch(app.name, input["name"])
    return await visible.manager.create_environment(app.name, input["name"])


def _prepare(_: Any, info: Any, input: Mapping[str, Any]) -> Ticket:
    asked = _asked(info)
    return asked.builds.open_ticket(asked.visible.app_of_id(input["flashAppId"]).id)


async def _finalize(_: Any, info: Any, input: Mapping[str, Any]) -> Build:
    asked = _asked(info)
    app = asked.visible.app_of_id(input["flashAppId"])
    return await asked.builds.finish(input["objectKey"], AppId(app.id))


async def _deploy(_: Any, info: Any, input: Mapping[str, Any]) -> Environment:
    asked = _asked(info)
    place = asked.visible.environment_of_id(input["flashEnvironmentId"])
    if asked.deployer is None:
        raise NoDeployer
    await asked.deployer.deploy(place.app, place.name, input["flashBuildId"], given={}, replace=True, by=asked.by)
    return asked.visible.environment_of_id(place.id)


async def _update_manifest(_: Any, info: Any, input: Mapping[str, Any]) -> Build:
    visible = _asked(info).visible
    build = visible.build(input["flashBuildId"])
    manifest = input["manifest"]
    if not isinstance(manifest, dict):
        raise BadManifest
    if len(json.dumps(manifest)) > MAX_PUBLISHED_BYTES:
        raise PayloadTooLarge(f"The manifest is larger than {MAX_PUBLISHED_BYTES} bytes.")
    await visible.manager.publish(build.app, build.id, manifest)
    return build


class BadManifest(FlashmeshError, ValueError):
    """A manifest is a JSON object."""

    code = "VALIDATION_ERROR"
    status = 400


async def _delete_app(_: Any, info: Any, flashAppId: str) -> bool:  # noqa: N803
    visible = _asked(info).visible
    await visible.manager.delete_app(visible.app_of_id(flashAppId).name)
    return True


async def _delete_environment(_: Any, info: Any, flashEnvironmentId: str) -> bool:  # noqa: N803
    visible = _asked(info).visible
    environment = visible.environment_of_id(flashEnvironmentId)
    try:
        await visible.manager.delete_environment(environment.app, environment.name)
    except EnvironmentNotFound:
        pass  # somebody else was quicker
    return True


def _asked(info: Any) -> Asked:
    asked: Asked = info.context
    return asked


RESOLVERS: Final[Mapping[str, Mapping[str, Callable[..., Any]]]] = {
    "Query": {
        "myself": _myself,
        "flashApps": _apps,
        "flashApp": _flash_app,
        "flashAppByName": _flash_app_by_name,
        "flashEnvironment": _flash_environment,
        "flashEnvironmentByName": _flash_environment_by_name,
        "flashBuild": _flash_build,
    },
    "Mutation": {
        "createFlashApp": _create_app,
        "createFlashEnvironment": _create_environment,
        "prepareFlashArtifactUpload": _prepare,
        "finalizeFlashArtifactUpload": _finalize,
        "deployBuildToEnvironment": _deploy,
        "updateFlashBuildManifest": _update_manifest,
        "deleteFlashApp": _delete_app,
        "deleteFlashEnvironment": _delete_environment,
    },
    "User": {"id": _user_id, "flashApps": _apps, "endpoints": _all_endpoints},
    "FlashApp": {
        "createdAt": lambda app, info: moment(app.created_at),
        "flashEnvironments": _app_environments,
        "flashBuilds": _app_builds,
    },
    "FlashEnvironment": {
        "flashAppId": lambda environment, info: environment.app_id,
        "state": _state,
        "createdAt": lambda environment, info: moment(environment.created_at),
        "activeBuildId": lambda environment, info: environment.build,
        "activeBuild": _active_build,
        "activeArtifact": _active_artifact,
        "manifest": _environment_manifest,
        "endpoints": _endpoints,
        "networkVolumes": _volumes,
        "flashDeployments": _deployments,
    },
    "FlashBuild": {
        "id": _of_build(lambda build: build.id),
        "flashAppId": _build_app,
        "createdAt": _of_build(lambda build: moment(build.created_at)),
        "objectKey": _of_build(lambda build: build.id),
        "bytes": _of_build(lambda build: build.bytes),
        "manifest": _build_manifest,
    },
    "FlashDeployment": {
        "flashBuildId": lambda deployment, info: deployment.build,
        "startedAt": lambda deployment, info: moment(deployment.started_at),
        "finishedAt": lambda deployment, info: moment(deployment.finished_at),
    },
    "FlashArtifactUpload": {
        "uploadUrl": lambda ticket, info: f"{_asked(info).root}/v1/uploads/{ticket.key}",
        "objectKey": lambda ticket, info: ticket.key,
        "expiresAt": lambda ticket, info: moment(ticket.expires_at),
    },
}
"""Fields that are not here are an attribute, or a key, of that name."""
