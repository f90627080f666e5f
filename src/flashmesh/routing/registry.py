"""The manifest a process routes by, read from the session's file and again whenever that file changed."""

import logging
from pathlib import Path
from typing import Final

import msgspec

from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.model import Manifest
from flashmesh.routing.route import Local, Remote, Route, Unresolved, decide

log = logging.getLogger(__name__)

_NEVER: Final = (0, 0)


class ServiceRegistry:
    """Routes of one endpoint's calls.

    The file's (modification time, size) is compared before each decision, which costs one `stat` (about 1 µs);
    routes are remembered until it differs. A file that is missing or half written leaves the last good one in force.
    """

    def __init__(self, path: Path, *, own: EndpointName) -> None:
        self._path = path
        self._own = own
        self._seen: tuple[int, int] = _NEVER
        self._manifest: Manifest | None = None
        self._routes: dict[FunctionId, Route] = {}

    @property
    def manifest(self) -> Manifest | None:
        """The manifest as of now; None when the file has never been readable."""
        self._refresh()
        return self._manifest

    def route(self, function: FunctionId) -> Route:
        """Where a call of this function goes."""
        self._refresh()
        route = self._routes.get(function)
        if route is None:
            route = self._routes[function] = decide(function, self._own, self._manifest)
        return route

    def forget(self) -> None:
        """Read the file again at the next decision, whatever its time says: an address did not answer."""
        self._seen = _NEVER

    def get_endpoint_for_function(self, name: str) -> str | None:
        """The address a call of `name` goes to, None when this endpoint runs it. Raises KeyError when unknown."""
        match self.route(FunctionId(name)):
            case Local():
                return None
            case Remote(url=url):
                return url
            case Unresolved(reason=reason):
                raise KeyError(reason)

    def _refresh(self) -> None:
        try:
            state = self._path.stat()
            stamp = (state.st_mtime_ns, state.st_size)
            if stamp == self._seen:
                return
            manifest = msgspec.json.decode(self._path.read_bytes(), type=dict)
        except (OSError, msgspec.DecodeError) as error:
            if self._manifest is None:
                log.debug("Function lookup failed", extra={"action": "manifest_unreadable", "reason": str(error)})
            return
        self._seen = stamp
        self._manifest = manifest
        self._routes.clear()
