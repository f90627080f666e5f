"""The manifest of an environment, assembled from what is recorded for its resources. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from flashmesh.gateway.state.records import Manifest, Served

VERSION: Final = "1.0"
PER_RESOURCE: Final = frozenset({"resources", "function_registry", "routes", "resources_endpoints", "generated_at"})
"""What of a manifest is made anew from its resources."""


def deployed_manifest(
    *, app: str, environment: str, build: str | None, common: Manifest, served: Iterable[Served]
) -> dict[str, Any]:
    """What serves in an environment.

    Args:
        build: what the environment was brought to last.
        common: what the manifest of that deployment says besides its resources.
    """
    named = by_name(served)
    at = max((one.recorded_at for one in named.values()), default=0.0)
    entries = {name: one.entry for name, one in named.items()}
    return {
        "version": VERSION,
        **common,
        "generated_at": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "app": app,
        "environment": environment,
        "build": build,
        "function_registry": registry(entries),
        "resources": entries,
        "routes": {name: routes(entry) for name, entry in entries.items() if entry.get("is_load_balanced")},
        "resources_endpoints": {
            name: entry["endpoint_url"] for name, entry in entries.items() if entry.get("endpoint_url")
        },
    }


def by_name(served: Iterable[Served]) -> dict[str, Served]:
    """By resource name, in its order.

    While a deployment is under way, or one of its resources failed, two may have one name: a resource takes over the
    name of another that is not renamed yet. The newest has it then, and the other one stands under its endpoint's id.
    """
    named: dict[str, Served] = {}
    for one in sorted(served, key=lambda one: (-one.recorded_at, one.identity)):
        name = one.name if one.name not in named else str(one.entry.get("endpoint_id") or one.identity)
        named[name] = one
    return dict(sorted(named.items()))


def registry(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Function id → resource, and bare name → resource while only one function has it."""
    found: dict[str, str] = {}
    names: dict[str, str] = {}
    for resource, entry in entries.items():
        for function in entry.get("functions", ()):
            id = str(function.get("id") or f"{function.get('module', '')}.{function.get('name', '')}")
            found[id] = resource
            names[id] = str(function.get("name", ""))
    counts = Counter(names.values())
    for id, name in names.items():
        if counts[name] == 1:
            found.setdefault(name, found[id])
    return found


def routes(entry: Mapping[str, Any]) -> dict[str, str]:
    """`POST /compute` → function id."""
    return {
        f"{function['http_method']} {function['http_path']}": str(function.get("id") or function.get("name"))
        for function in entry.get("functions", ())
        if function.get("http_method") and function.get("http_path")
    }
