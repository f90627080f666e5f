"""The manifests of environments as files of this machine, by which workers find each other while the server is away."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flashmesh.kit.files import write_atomically


class ManifestFiles:
    """`<folder>/<app>.<environment>.json`, for this user only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, app: str, environment: str) -> Path:
        """Another one for every pair of names: a dot in either is escaped."""
        app, environment = (quote(name, safe="").replace(".", "%2E") for name in (app, environment))
        return self._folder / f"{app}.{environment}.json"

    def write(self, app: str, environment: str, manifest: Mapping[str, Any], *, at: float) -> None:
        """Replace it, whole.

        Args:
            at: seconds since the epoch, for those who ask how fresh it is.
        """
        document = {**manifest, "fetched_at": at}
        write_atomically(self.path(app, environment), json.dumps(document), mode=0o600)

    def drop(self, app: str, environment: str) -> None:
        self.path(app, environment).unlink(missing_ok=True)
