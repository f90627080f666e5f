"""Builds the State Manager of one server."""

import dataclasses
from pathlib import Path
from typing import Final

from flashmesh.gateway.database import Database
from flashmesh.gateway.state.artifacts import ArtifactStore
from flashmesh.gateway.state.builds import Builds
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import Manifest

UPLOADS: Final = (b"/v1/builds/", b"/v1/uploads/")
"""Below these paths whole artifacts are sent."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StateParts:
    manager: StateManager
    artifacts: ArtifactStore
    builds: Builds


def state_parts(*, database: Database, folder: Path, limit_bytes: int) -> StateParts:
    """Raises DatabaseDamaged when a row cannot be read.

    Args:
        folder: of the artifacts.
        limit_bytes: of one artifact.
    """

    def unpack_here(archive: Path, into: Path) -> Manifest:
        from flashmesh.project.unpack import unpack  # with the first artifact that is unpacked

        return unpack(archive, into)

    manager = StateManager(database)
    artifacts = ArtifactStore(folder, unpack=unpack_here, limit_bytes=limit_bytes)
    return StateParts(manager=manager, artifacts=artifacts, builds=Builds(manager, artifacts))
