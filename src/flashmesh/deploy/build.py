"""`flash build`: from a directory to a manifest, an artifact, and the values of environments, which are in neither."""

import asyncio
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from flashmesh.deploy.local.inspections import Inspections
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.files import write_atomically
from flashmesh.project import checks
from flashmesh.project.appname import check_name, declared_name
from flashmesh.project.artifact import LIMIT_BYTES, Artifact, pack
from flashmesh.project.closure import Closures
from flashmesh.project.contents import Contents, LeftOut, find_contents
from flashmesh.project.handlers import handler_files
from flashmesh.project.identity import identity_of_resource
from flashmesh.project.manifest import build_manifest
from flashmesh.project.model import Manifest, Problem, Project, ResourceSpec
from flashmesh.project.scan import scan

FOLDER: Final = ".flash"
ARCHIVE: Final = "archive.tar.gz"
MANIFEST: Final = "manifest.json"


class NothingToBuild(FlashmeshError):
    """No function in this directory is decorated with `@remote(…)` or `@Endpoint(…)`."""

    code = "NOTHING_TO_BUILD"


class BuildRefused(FlashmeshError):
    """The project has errors. Correct them and build again.

    `problems`: all of them, in the order of the files.
    """

    code = "BUILD_REFUSED"

    def __init__(self, problems: Sequence[Problem]) -> None:
        listed = "".join(f"\n  {line}" for line in checks.sentences(problems))
        some = "an error" if len(problems) == 1 else f"{len(problems)} errors"
        super().__init__(f"The project has {some}, and nothing was built:{listed}")
        self.problems = tuple(problems)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One build of a project."""

    project: Project
    manifest: Manifest
    artifact: Artifact
    env: Mapping[str, Mapping[str, str]]
    """Identity -> name -> value, of every resource that has any. To be handed on, never to be written or shown."""
    warnings: tuple[Problem, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    """What is not packed though no ignore rule says so."""


async def build(
    root: Path,
    *,
    app: str | None = None,
    exclude: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    out: Path | None = None,
    limit_bytes: int = LIMIT_BYTES,
    inspections: Inspections | None = None,
) -> Built:
    """Scan the project, import what syntax does not tell (each file in a process of its own), and pack it.

    Writes the archive and, in `.flash/`, the manifest; nothing else.

    Args:
        app: its name, instead of what its files and its folder say.
        exclude: patterns of what is not there, as in a `.gitignore`.
        env: variables that every resource gets, over those of its code and of flash.toml.
        out: the archive; default `.flash/archive.tar.gz`.
    Raises:
        NothingToBuild: it declares no function.
        BuildRefused: with every error.
        ArtifactTooLarge, CannotPack, BadName, OSError.
    """
    root, out = _places(root, out)
    if app is not None:
        check_name(app)
    project = await _found(root, exclude, env or {}, inspections or Inspections(environ=env))
    project = dataclasses.replace(project, name=app or project.name)
    return await asyncio.to_thread(_packed, project, exclude, out, limit_bytes)


def _places(root: Path, out: Path | None) -> tuple[Path, Path]:
    root = root.absolute()
    return root, (out or root / FOLDER / ARCHIVE).absolute()


async def _found(root: Path, exclude: Sequence[str], env: Mapping[str, str], inspections: Inspections) -> Project:
    """The project with everything known of it. Raises NothingToBuild, BuildRefused."""
    project = scan(root, environ={**os.environ, **env}, exclude=exclude)
    missing = inspections.missing(project)
    if missing:
        await inspections.import_all(root, missing)
    project = inspections.complete(project)
    wrong = checks.errors(project, Closures(project))
    if wrong:
        raise BuildRefused(wrong)
    if not project.functions:
        raise NothingToBuild(
            f"No function in {root} is decorated with `@remote(…)` or `@Endpoint(…)`. `flash init` writes a start."
        )
    return dataclasses.replace(project, resources=tuple(_with_values(one, env) for one in project.resources))


def _with_values(resource: ResourceSpec, env: Mapping[str, str]) -> ResourceSpec:
    if not env:
        return resource
    return dataclasses.replace(
        resource, config=dataclasses.replace(resource.config, env={**resource.config.worker_env, **env})
    )


def _packed(project: Project, exclude: Sequence[str], out: Path, limit_bytes: int) -> Built:
    root = project.root
    contents = find_contents(root, exclude=exclude, skip=[out])
    closures = Closures(project)
    digests = contents.digests()
    manifest = build_manifest(project, closures=closures, files=digests, generated_at=datetime.now(UTC))
    manifest["source_fingerprint"] = _fingerprint(digests)
    if out.parent == root / FOLDER:
        make_folder(root)
    artifact = pack(
        contents,
        _reproducible(manifest, root),
        handler_files(manifest),
        out=out,
        digests=digests,
        limit_bytes=limit_bytes,
    )
    make_folder(root)
    write_atomically(root / FOLDER / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return Built(
        project=project,
        manifest=manifest,
        artifact=artifact,
        env={
            identity_of_resource(resource): dict(resource.config.worker_env)
            for resource in project.resources
            if resource.config.worker_env
        },
        warnings=_warnings(project, closures, contents),
        left_out=contents.left_out,
    )


def _warnings(project: Project, closures: Closures, contents: Contents) -> tuple[Problem, ...]:
    packed = {file.path for file in contents.files}
    return tuple(
        checks.warnings(project, closures, packed=packed, read=lambda file: (project.root / file).read_bytes())
    )


def _reproducible(manifest: Manifest, root: Path) -> dict[str, Any]:
    """The manifest as it is packed: of the project's name only what its files say, not its folder or a command."""
    packed = {name: value for name, value in manifest.items() if name not in ("generated_at", "project_name")}
    name = declared_name(root)
    return {**packed, "project_name": name} if name else packed


def _fingerprint(digests: Mapping[str, str]) -> str:
    """64 hex over everything that is packed."""
    total = hashlib.sha256()
    for path, found in sorted(digests.items()):
        total.update(f"{path}\0{found}\0".encode())
    return total.hexdigest()


def make_folder(root: Path) -> None:
    """`.flash/`, which git shall not see; no file outside it is touched."""
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        write_atomically(ignore, "*\n")
