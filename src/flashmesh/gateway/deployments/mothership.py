"""A server that is started inside a build deploys it: the mothership of an app.

At its first start it serves the build it stands in. From then on what it has stored counts: a copy on disk that differs
is told and replaced, and changed by deploys alone.
"""

import asyncio
import dataclasses
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.deployments.journal import env_names
from flashmesh.gateway.deployments.service import Deployments
from flashmesh.gateway.state.builds import Builds
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import AppNotFound, Env, Environment, EnvironmentNotFound, Manifest
from flashmesh.kit.files import write_atomically
from flashmesh.project.appname import check_name
from flashmesh.project.identity import identity_of

DEFAULT_MANIFEST: Final = "flash_manifest.json"
_PIECE: Final = 1024 * 1024


class NoOwnBuild(FlashmeshError):
    """FLASH_IS_MOTHERSHIP is set, and there is no manifest to serve. Name it with FLASH_MANIFEST_PATH."""

    code = "NO_OWN_BUILD"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnBuild:
    """What stands on disk beside the server."""

    path: Path
    """Of the manifest; the build's files stand beside it."""
    manifest: Manifest
    app: str
    environment: str


def own_build(path: Path | None, environ: Mapping[str, str]) -> OwnBuild:
    """Read it. App and environment: FLASH_APP and FLASH_ENV, else the manifest's project in `production`.

    Raises NoOwnBuild, BadName.
    """
    found = (path or Path(DEFAULT_MANIFEST)).absolute()
    try:
        manifest = json.loads(found.read_bytes())
        name = environ.get("FLASH_APP", "").strip() or str(manifest.get("project_name") or found.parent.name)
        manifest["resources"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise NoOwnBuild(
            f"FLASH_IS_MOTHERSHIP is set, and {found} is no manifest that can be read ({error}). Name the one of an "
            "unpacked build with FLASH_MANIFEST_PATH, or unset FLASH_IS_MOTHERSHIP."
        ) from error
    environment = environ.get("FLASH_ENV", "").strip() or "production"
    return OwnBuild(
        path=found,
        manifest=manifest,
        app=check_name(name, what="app"),
        environment=check_name(environment, what="environment"),
    )


async def serve_own_build(
    own: OwnBuild,
    *,
    deployments: Deployments,
    state: StateManager,
    builds: Builds,
    environ: Mapping[str, str],
    notice: Callable[[str, str], None],
) -> None:
    """Deploy it when nothing was ever deployed there; else tell whether it differs from what is stored.

    Values of environment variables that its resources declare are the server's own.

    Raises what packing, keeping and deploying it raise.
    """
    place = _place(state, own)
    if place is not None and state.deployments(own.app, own.environment):
        stored = state.manifest(own.app, own.environment)
        if versions_of(stored) != versions_of(own.manifest):
            notice(
                f"{own.path} is another build than the one stored for {place.place}, which counts. "
                "`flash deploy` brings another one.",
                "warning",
            )
            await asyncio.to_thread(_replace, own.path, stored, notice)
        return
    id = await _kept(own, builds)
    begun, _ = await deployments.deploy(
        own.app,
        own.environment,
        id,
        given=values_of(own.manifest, environ),
        allow_cpu=environ.get("FLASH_ALLOW_CPU", "").lower() in ("1", "true", "yes", "on"),
    )
    notice(f"Deploying the build {id} of {own.path} to {begun.place}.", "info")


def versions_of(manifest: Manifest) -> dict[str, Any]:
    """What tells a manifest from another one of the same app: sources, and of each resource its settings."""
    resources = manifest.get("resources", {}).values()
    settings = {identity_of(entry): (entry.get("config_hash"), entry.get("config")) for entry in resources}
    return {"sources": manifest.get("source_fingerprint"), "settings": settings}


def values_of(manifest: Manifest, environ: Mapping[str, str]) -> Env:
    """By identity: what this process has of the variables that each resource declares."""
    return {
        identity_of(entry): {name: environ[name] for name in env_names(entry) if name in environ}
        for entry in manifest["resources"].values()
    }


def _place(state: StateManager, own: OwnBuild) -> Environment | None:
    try:
        return state.environment(own.app, own.environment)
    except (AppNotFound, EnvironmentNotFound):
        return None


async def _kept(own: OwnBuild, builds: Builds) -> str:
    """Its files as a build of the server's; the build's id."""
    with tempfile.TemporaryDirectory(prefix="flash-own-") as folder:
        archive = Path(folder, "archive.tar.gz")
        id = await asyncio.to_thread(_pack, own, archive)
        await builds.receive(_pieces(archive), id, own.app)
    return id


def _pack(own: OwnBuild, out: Path) -> str:
    from flashmesh.project.artifact import pack  # at a mothership's first start only
    from flashmesh.project.contents import find_contents
    from flashmesh.project.handlers import handler_files

    contents = find_contents(own.path.parent, exclude=("/handlers/", f"/{own.path.name}"))
    return pack(contents, own.manifest, handler_files(own.manifest), out=out, digests=contents.digests()).build_id


async def _pieces(archive: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(archive.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


def _replace(path: Path, stored: Mapping[str, Any], notice: Callable[[str, str], None]) -> None:
    try:
        write_atomically(path, json.dumps(stored, indent=1) + "\n")
    except OSError as error:
        notice(f"{path} could not be replaced by what is stored: {error.strerror}.", "warning")
