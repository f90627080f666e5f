"""The manifests of environments as files of this machine, by which workers find each other while the server is away."""

import json
from collections.abc import Iterable, Mapping
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

    def differences(self, app: str, environment: str, manifest: Mapping[str, Any]) -> list[str]:
        """In which resources the file, if there is one, says something else; `everything` where it cannot be read."""
        try:
            copy = json.loads(self.path(app, environment).read_bytes())
            found: dict[str, Any] = {**copy["resources"]}
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            return ["everything"]
        wanted = json.loads(json.dumps(manifest["resources"]))
        return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))

    def write(self, app: str, environment: str, manifest: Mapping[str, Any], *, at: float) -> None:
        """Replace it, whole.

        Args:
            at: seconds since the epoch, for those who ask how fresh it is.
        """
        document = {**manifest, "fetched_at": at}
        write_atomically(self.path(app, environment), json.dumps(document), mode=0o600)

    def keep_only(self, places: Iterable[tuple[str, str]]) -> None:
        """Remove what belongs to no such app and environment."""
        known = {self.path(app, environment) for app, environment in places}
        for path in self._folder.glob("*.json"):
            if path not in known:
                path.unlink(missing_ok=True)

    def drop(self, app: str, environment: str) -> None:
        self.path(app, environment).unlink(missing_ok=True)
