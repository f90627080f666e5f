"""Where a call goes, as a decision over plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.model import Manifest


@dataclass(frozen=True, slots=True)
class Local:
    """The function belongs to this endpoint: run the body here."""

    endpoint: EndpointName


@dataclass(frozen=True, slots=True)
class Remote:
    """The function is served by another endpoint.

    Attributes:
        socket: path of the endpoint's Unix socket; empty for a load-balanced resource, which is reached by `url`.
        url: what logs say, and the address itself for a load-balanced resource.
        http_method, http_path: a load-balanced function's declared route.
    """

    endpoint: EndpointName
    socket: str
    url: str
    http_method: str | None = None
    http_path: str | None = None


@dataclass(frozen=True, slots=True)
class Unresolved:
    """No address is known. `reason` is one sentence for the log or the error."""

    reason: str


Route = Local | Remote | Unresolved


def decide(function: FunctionId, own: EndpointName, manifest: Manifest | None) -> Route:
    """The route of one call: this endpoint's own function, another resource's address, or the reason there is none.

    `function` is the id of the function or class; a bare name resolves while the manifest's registry holds it.
    """
    if manifest is None:
        return Unresolved("no manifest is available")
    resource = manifest.get("function_registry", {}).get(function)
    if resource is None:
        resource = _owner(function, manifest)
    if resource is None:
        return Unresolved(f"the manifest does not name function {function!r}")
    if resource == own:
        return Local(own)
    entry = manifest.get("resources", {}).get(resource)
    if entry is None:
        return Unresolved(f"the manifest names resource {resource!r} of {function!r} but does not describe it")
    return _address(function, EndpointName(resource), entry)


def function_entry(function: str, entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The manifest's entry of a function, given its id or bare name, within one resource."""
    for candidate in entry.get("functions", ()):
        if function in (entry_id(candidate), candidate["name"]):
            found: Mapping[str, Any] = candidate
            return found
    return None


def entry_id(entry: Mapping[str, Any]) -> FunctionId:
    """The id of a function's manifest entry: its own `id` when given, else `module.name`."""
    return FunctionId(entry.get("id") or f"{entry['module']}.{entry['name']}")


def _owner(function: str, manifest: Manifest) -> str | None:
    owners = [name for name, entry in manifest.get("resources", {}).items() if function_entry(function, entry)]
    return owners[0] if len(owners) == 1 else None


def _address(function: FunctionId, resource: EndpointName, entry: Mapping[str, Any]) -> Route:
    declared = function_entry(function, entry) or {}
    if entry.get("is_load_balanced"):
        base = str(entry.get("endpoint_url") or "").rstrip("/")
        if not base:
            return Unresolved(f"resource {resource!r} has no address yet")
        method, path = declared.get("http_method") or "POST", declared.get("http_path") or "/"
        return Remote(resource, "", base + path, method, path)
    sockets = [url.removeprefix("unix:") for url in entry.get("peer_urls", ()) if url.startswith("unix:")]
    if not sockets:
        return Unresolved(f"resource {resource!r} has no address yet")
    return Remote(resource, sockets[0], f"unix:{sockets[0]}:/{quote(function)}/run_sync")
