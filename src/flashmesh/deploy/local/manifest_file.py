"""The manifest of a session: what its workers route their calls by. Workers read the file again when it changes."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flashmesh.kit.files import write_atomically
from flashmesh.project.closure import Closures
from flashmesh.project.manifest import EndpointAddress, build_manifest
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.project.naming import prefix_of
from flashmesh.worker.keeper.client import EndpointSockets


def write_manifest(
    path: Path,
    projects: Sequence[tuple[Project, Closures]],
    *,
    sockets: Mapping[str, EndpointSockets],
    server_url: str | None,
) -> None:
    """Write the manifest of all `projects` (a script may use several directories) as one.

    Args:
        sockets: the endpoints that are declared, by resource name.
        server_url: where HTTP routes are answered; None = nowhere, in a session without a server.
    """
    merged: dict[str, Any] = {}
    for project, closures in projects:
        manifest = describe(project, closures, sockets=sockets, server_url=server_url)
        for key, value in manifest.items():
            if isinstance(value, dict):
                merged.setdefault(key, {}).update(value)
            else:
                merged.setdefault(key, value)
    write_atomically(path, json.dumps(merged), mode=0o600)


def describe(
    project: Project, closures: Closures, *, sockets: Mapping[str, EndpointSockets], server_url: str | None
) -> dict[str, Any]:
    """The manifest of one project with the addresses of this session in it."""
    addresses = {resource.name: _address(resource, sockets, server_url) for resource in project.resources}
    manifest = build_manifest(
        project,
        generated_at=datetime.now(UTC),
        endpoints={name: address for name, address in addresses.items() if address is not None},
        closures=closures,
    )
    for name, entry in manifest["resources"].items():
        if name in sockets:
            entry["reentrant_url"] = f"unix:{sockets[name].reentrant_path}"
        if entry["is_load_balanced"] and name not in sockets:
            _add_prefixes(entry)
    return manifest


def _address(
    resource: ResourceSpec, sockets: Mapping[str, EndpointSockets], server_url: str | None
) -> EndpointAddress | None:
    found = sockets.get(resource.name)
    if resource.is_load_balanced and found is None:
        return EndpointAddress(endpoint_url=server_url) if server_url else None
    return EndpointAddress(peer_urls=(f"unix:{found.socket_path}",)) if found else None


def _add_prefixes(entry: dict[str, Any]) -> None:
    """On the dev server a route stands below its file's prefix.

    One file is the rule: the prefix goes into the endpoint's address. Functions of several files each carry their own.
    """
    files = {function["file_path"] for function in entry["functions"]}
    if len(files) == 1 and entry.get("endpoint_url"):
        entry["endpoint_url"] += prefix_of(files.pop())
        return
    for function in entry["functions"]:
        function["http_path"] = prefix_of(function["file_path"]) + (function.get("http_path") or "")
