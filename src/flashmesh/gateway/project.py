"""A project served without a deploy step: found once, at the start, and never looked at again."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from flashmesh.deploy.local.inspections import Inspections
from flashmesh.deploy.local.manifest_file import write_manifest
from flashmesh.deploy.local.target import LocalTarget
from flashmesh.functions.errors import FlashmeshError
from flashmesh.project.closure import Closures
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.project.scan import scan


class NothingToServe(FlashmeshError):
    """No function in this directory is decorated with `@remote(…)` or `@Endpoint(…)`."""

    code = "NOTHING_TO_SERVE"


@dataclasses.dataclass(frozen=True, slots=True)
class ServedProject:
    """What was found, and which of it workers serve."""

    project: Project
    resources: tuple[ResourceSpec, ...]
    """Those with a queue."""
    balanced: tuple[ResourceSpec, ...]
    """Those with HTTP routes, which have no queue to stand in."""
    builds: Closures

    @classmethod
    async def find(cls, root: Path, inspections: Inspections | None = None) -> "ServedProject":
        """Scan the directory; import, each in a process of its own, the files whose syntax does not tell everything.

        Raises NothingToServe.
        """
        inspections = inspections or Inspections()
        project = scan(root)
        missing = inspections.missing(project)
        if missing:
            await inspections.import_all(root, missing)
        project = inspections.complete(project)
        if not project.functions and not project.problems:
            raise NothingToServe(
                f"No function in {root} is decorated with `@remote(…)` or `@Endpoint(…)`. `flash init` writes a start."
            )
        queued = tuple(resource for resource in project.resources if not resource.is_load_balanced)
        balanced = tuple(resource for resource in project.resources if resource.is_load_balanced)
        return cls(project, queued, balanced, Closures(project))

    async def declare(self, target: LocalTarget, manifest: Path, resources: Iterable[ResourceSpec]) -> None:
        """Open every endpoint and write what workers route their calls by. Starts no template.

        Args:
            resources: those of `resources`, with what was changed about them since they were written.
        """
        await asyncio.gather(*(self.update(target, resource) for resource in (*resources, *self.balanced)))
        write_manifest(manifest, [(self.project, self.builds)], sockets=target.sockets(), server_url=None)

    async def update(self, target: LocalTarget, resource: ResourceSpec) -> None:
        """Serve a resource, or go on serving it with other settings."""
        await target.update(resource, self.project, self.builds.builds()[resource.name])

    def say_problems(self, say: Callable[[str, str], None]) -> None:
        """Tell, text and level, what is wrong with the project and where its HTTP routes are."""
        for problem in self.project.problems:
            place = problem.file if problem.line is None else f"{problem.file}:{problem.line}"
            say(f"{place}: {problem.reason}", problem.severity)
        if self.balanced:
            say(f"HTTP routes: {', '.join(f'/lb/{resource.name}/…' for resource in self.balanced)}", "info")
