"""Where a call goes, as a decision over plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from flashmesh.functions.credentials import RUNPOD_DOMAINS
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.model import Manifest
from flashmesh.routing.addresses import Address, AddressRefused, Rules, read_address


@dataclass(frozen=True, slots=True)
class Own:
    """By which names a manifest may mean the endpoint that asks.

    Attributes:
        endpoint: its id, which stays; calls carry it in their chain.
        resource_name: its name in the manifest, which a deploy may change; empty: the same as its id.
        platform_id: what the platform it runs on calls it (RUNPOD_ENDPOINT_ID); empty where there is none.
    """

    endpoint: EndpointName
    resource_name: str = ""
    platform_id: str = ""

    @property
    def chain_name(self) -> str:
        """How manifests and chains of calls name it: by the id that it was deployed under."""
        return self.platform_id or self.endpoint

    def is_meant(self, resource: str, entry: Mapping[str, Any]) -> bool:
        """Whether this resource of a manifest is this endpoint. An id decides; without one its name does."""
        id = entry.get("endpoint_id")
        if id:
            return id in (self.endpoint, self.platform_id)
        names = {self.resource_name, self.endpoint}
        return resource in names or _declared(resource) in {_declared(name) for name in names}


@dataclass(frozen=True, slots=True)
class Local:
    """The function belongs to this endpoint: run the body here."""

    endpoint: EndpointName


@dataclass(frozen=True, slots=True)
class Remote:
    """The function is served by another endpoint.

    Attributes:
        endpoint: its id, as chains of calls name it.
        socket: path of its Unix socket; empty where only its URL is known.
        url: what logs say. Of a load-balanced function the whole address, with its path's parameters in braces.
        address: of the endpoint, over TCP; None where only its socket is known.
        reentrant: path of the socket for calls that come back to it; empty where there is none.
        queue: it is called as RunPod's queue API is, in JSON, because nothing says that it is one of ours.
        alone: it serves this function only, so that a queue needs no name to know it.
        http_method, http_path: a load-balanced function's declared route.
    """

    endpoint: EndpointName
    socket: str
    url: str
    address: Address | None = None
    reentrant: str = ""
    queue: bool = False
    alone: bool = False
    http_method: str | None = None
    http_path: str | None = None


@dataclass(frozen=True, slots=True)
class Unresolved:
    """No address is known. `reason` is one sentence for the log or the error."""

    reason: str


Route = Local | Remote | Unresolved

_NO_RULES: Final = Rules()


def decide(function: FunctionId, own: Own, manifest: Manifest | None, rules: Rules = _NO_RULES) -> Route:
    """The route of one call: this endpoint's own function, another resource's address, or the reason there is none.

    `function` is the id of the function or class; a bare name resolves while the manifest's registry holds it.
    """
    if manifest is None:
        return Unresolved("no manifest is available")
    resource = _resource_of(function, manifest)
    if resource is None:
        return Unresolved(f"the manifest does not name function {function!r}")
    entry = _table(manifest, "resources").get(resource)
    if not isinstance(entry, Mapping):
        if own.is_meant(resource, {}):
            return Local(own.endpoint)
        return Unresolved(f"the manifest names resource {resource!r} of {function!r} but does not describe it")
    if own.is_meant(resource, entry):
        return Local(own.endpoint)
    try:
        return _address(function, resource, entry, manifest, rules)
    except AddressRefused as refused:
        return Unresolved(f"the manifest's address of resource {resource!r} may not be called: {refused}")


def function_entry(function: str, entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The manifest's entry of a function, given its id or bare name, within one resource."""
    for described in _functions(entry):
        if function in (entry_id(described), described["name"]):
            return described
    return None


def entry_id(entry: Mapping[str, Any]) -> FunctionId:
    """The id of a function's manifest entry: its own `id` when given, else `module.name`; the name of one without."""
    module = entry.get("module")
    return FunctionId(str(entry.get("id") or (f"{module}.{entry['name']}" if module else entry["name"])))


def _resource_of(function: str, manifest: Manifest) -> str | None:
    registry, resources = _table(manifest, "function_registry"), _table(manifest, "resources")
    found = registry.get(function)
    if found is not None:
        return str(found)
    owners = [
        name for name, entry in resources.items() if isinstance(entry, Mapping) and function_entry(function, entry)
    ]
    if owners:
        return owners[0] if len(owners) == 1 else None
    return _by_bare_name(function.rpartition(".")[2], registry, resources)


def _by_bare_name(name: str, registry: Mapping[str, Any], resources: Mapping[str, Any]) -> str | None:
    """The resource of a manifest that knows functions by bare names only, as Flash writes it.

    Where it knows this one's module, the caller means another function of that name.
    """
    resource = registry.get(name)
    if resource is None:
        return None
    entry = resources.get(str(resource))
    described = (function_entry(name, entry) if isinstance(entry, Mapping) else None) or {}
    return None if described.get("id") or described.get("module") else str(resource)


def _address(
    function: FunctionId, resource: str, entry: Mapping[str, Any], manifest: Manifest, rules: Rules
) -> Remote | Unresolved:
    declared = function_entry(function, entry) or function_entry(function.rpartition(".")[2], entry) or {}
    url = entry.get("endpoint_url") or _table(manifest, "resources_endpoints").get(resource)
    address = read_address(str(url), rules) if url else None
    socket = _socket(entry.get("peer_urls"), rules)
    if address is None and not socket:
        return Unresolved(f"resource {resource!r} has no address yet")
    endpoint = EndpointName(str(entry.get("endpoint_id") or resource))
    reentrant = _socket((entry.get("reentrant_url"),), rules) if socket else ""
    base = "" if address is None else address.origin + address.path
    if entry.get("is_load_balanced"):
        method, path = declared.get("http_method") or "POST", declared.get("http_path") or "/"
        shown = (base or f"unix:{socket}:") + path
        return Remote(
            endpoint, socket, shown, address, reentrant or socket, http_method=str(method), http_path=str(path)
        )
    if address is not None and is_runpod(address.host):
        return Remote(endpoint, "", f"{base}/runsync", address, queue=True, alone=_is_alone(entry))
    shown = base or f"unix:{socket}:"
    queue = "peer_urls" not in entry  # only our own manifests say how peers are reached
    return Remote(
        endpoint, socket, f"{shown}/{quote(function)}/run_sync", address, reentrant, queue=queue, alone=_is_alone(entry)
    )


def is_runpod(host: str) -> bool:
    """Whether a host is RunPod's."""
    return any(host == domain or host.endswith("." + domain) for domain in RUNPOD_DOMAINS)


def _is_alone(entry: Mapping[str, Any]) -> bool:
    return len(_functions(entry)) == 1


def _socket(urls: object, rules: Rules) -> str:
    """The first socket among addresses of peers that may be called; what is not for this machine is passed over."""
    for url in urls if isinstance(urls, list | tuple) else ():
        if isinstance(url, str) and url.startswith("unix:"):
            try:
                return read_address(url, rules).path
            except AddressRefused:
                continue
    return ""


def _functions(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The functions of a resource that have a name; some manifests have nothing but names."""
    listed = entry.get("functions")
    described = [{"name": one} if isinstance(one, str) else one for one in listed] if isinstance(listed, list) else []
    return [one for one in described if isinstance(one, Mapping) and isinstance(one.get("name"), str)]


def _table(manifest: Manifest, name: str) -> Mapping[str, Any]:
    table = manifest.get(name)
    return table if isinstance(table, Mapping) else {}


def _declared(name: str) -> str:
    """A declared name without what Flash puts around it: `live-` before, `-fb` behind."""
    return name.removeprefix("live-").removesuffix("-fb")
