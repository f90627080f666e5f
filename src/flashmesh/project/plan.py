"""What a deploy would change: the manifest of what serves now against the one that is wanted. Pure.

Resources are matched by identity (file and declared name), so one whose name in the manifest changed is still itself.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flashmesh.project.identity import identity_of
from flashmesh.project.manifest import COUNTS
from flashmesh.project.model import Manifest

IN_PLACE: Final = frozenset({"name", *(f"config.{name}" for name in COUNTS)})
"""Fields whose change replaces no worker."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One resource of a plan."""

    identity: str
    name: str
    """As wanted; of a removed resource, as deployed."""
    was_name: str | None = None
    """Its name in what is deployed, where that is another one."""
    fields: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    """What differs, as (deployed, wanted): `config.<setting>`; `name`; `functions` and `env` (names; the same names
    twice: values differ); `code` (digests by path); `files`, `requirements` and `version` (digests); `status` (its last
    deploy failed)."""
    in_place: bool = False
    """Only worker counts (and its name) changed: its workers stay."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every resource of both sides, once, sorted by name."""

    new: tuple[Change, ...] = ()
    changed: tuple[Change, ...] = ()
    removed: tuple[Change, ...] = ()
    unchanged: tuple[Change, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.new or self.changed or self.removed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. `from_dict` gives back an equal plan, with lists for tuples in values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """Raises TypeError and KeyError for what is no plan."""
        return cls(
            **{
                kind: tuple(
                    Change(**{**change, "fields": {name: (old, new) for name, (old, new) in change["fields"].items()}})
                    for change in changes
                )
                for kind, changes in data.items()
            }
        )


def plan(deployed: Manifest | None, wanted: Manifest, env_hashes: Mapping[str, str]) -> Plan:
    """What brings `deployed` to `wanted`.

    Args:
        deployed: the environment's manifest, entries with `env_hash` and `status`; None: nothing is deployed.
        env_hashes: identity -> the server's keyed hash of the values its environment variables shall have. Of one that
            is not in it the values are not compared.
    """
    before = _by_identity(deployed or {"resources": {}})
    after = _by_identity(wanted)
    new: list[Change] = []
    changed: list[Change] = []
    unchanged: list[Change] = []
    for identity, (name, entry) in after.items():
        if identity not in before:
            new.append(Change(identity=identity, name=name))
            continue
        was_name, was = before[identity]
        fields = dict(_differences(was, entry, was_env=was.get("env_hash", ""), env=env_hashes.get(identity)))
        if was_name != name:
            fields["name"] = (was_name, name)
        change = Change(
            identity=identity,
            name=name,
            was_name=was_name if was_name != name else None,
            fields=fields,
            in_place=bool(fields) and fields.keys() <= IN_PLACE,
        )
        (changed if fields else unchanged).append(change)
    removed = [Change(identity=identity, name=name) for identity, (name, _) in before.items() if identity not in after]
    return Plan(new=_sorted(new), changed=_sorted(changed), removed=_sorted(removed), unchanged=_sorted(unchanged))


def lines(change: Change) -> list[str]:
    """What differs, a line each, for people: `workers_max 1 → 3`, `code: gpu.py, lib.py`. Never a value of `env`."""
    return [_line(name, old, new) for name, (old, new) in sorted(change.fields.items(), key=_order)]


def _by_identity(manifest: Manifest) -> dict[str, tuple[str, Mapping[str, Any]]]:
    return {identity_of(entry): (name, entry) for name, entry in manifest["resources"].items()}


def _sorted(changes: list[Change]) -> tuple[Change, ...]:
    return tuple(sorted(changes, key=lambda change: (change.name, change.identity)))


def _differences(
    was: Mapping[str, Any], entry: Mapping[str, Any], *, was_env: str, env: str | None
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    found = dict(_causes(was, entry))
    names, wanted_names = _env_names(was), _env_names(entry)
    if names != wanted_names or (env is not None and env != was_env):
        found["env"] = (names, wanted_names)
    version = was.get("config_hash")  # None: of what never served
    if version not in (None, entry.get("config_hash")) and found.keys() <= IN_PLACE:
        found["version"] = (version, entry.get("config_hash"))
    if was.get("status") == "failed":
        found["status"] = ("failed", "deployed")
    yield from found.items()


def _causes(was: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The settings that differ; and, where the version does, why."""
    yield from _settings(was["config"], entry["config"])
    if was.get("config_hash") == entry.get("config_hash"):
        return
    functions, wanted_functions = _function_names(was), _function_names(entry)
    if functions != wanted_functions:
        yield "functions", (functions, wanted_functions)
    sources, wanted_sources = was.get("sources", {}), entry.get("sources", {})
    if sources != wanted_sources:
        changed = {file for file in {*sources, *wanted_sources} if sources.get(file) != wanted_sources.get(file)}
        yield "code", (_only(sources, changed), _only(wanted_sources, changed))
    hashes, wanted_hashes = was.get("hashes", {}), entry.get("hashes", {})
    for cause in ("files", "requirements"):
        if hashes.get(cause) != wanted_hashes.get(cause):
            yield cause, (hashes.get(cause), wanted_hashes.get(cause))


def _settings(was: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in sorted({*was, *wanted} - {"env", "name"}):
        old, new = was.get(name), wanted.get(name)
        if name in ("template", "extra") and isinstance(old, Mapping) and isinstance(new, Mapping):
            for inner in sorted({*old, *new} - {"env"}):
                if old.get(inner) != new.get(inner):
                    yield f"config.{name}.{inner}", (old.get(inner), new.get(inner))
        elif old != new:
            yield f"config.{name}", (old, new)


def _env_names(entry: Mapping[str, Any]) -> list[str]:
    config = entry["config"]
    return sorted(config.get("env") or (config.get("template") or {}).get("env") or [])


def _function_names(entry: Mapping[str, Any]) -> list[str]:
    return sorted(function["name"] for function in entry["functions"])


def _only(sources: Mapping[str, str], files: set[str]) -> dict[str, str]:
    return {file: digest for file, digest in sources.items() if file in files}


def _order(field: tuple[str, Any]) -> tuple[bool, str]:
    """Settings first, then causes."""
    return (not field[0].startswith("config."), field[0])


def _line(name: str, old: Any, new: Any) -> str:
    match name:
        case "code":
            return "code: " + _some(sorted({*old, *new}))
        case "env" if old == new:
            return "env: values"
        case "env" | "functions":
            gone, come = sorted({*old} - {*new}), sorted({*new} - {*old})
            return f"{name}: " + _some([*(f"+{item}" for item in come), *(f"-{item}" for item in gone)])
        case "files":
            return "files that no function imports (data, or loaded while it runs)"
        case "requirements":
            return "the project's requirements"
        case "status":
            return "its last deploy failed"
        case "version":
            return "built by another version of flashmesh"
        case _:
            return f"{name.removeprefix('config.')} {_value(old)} → {_value(new)}"


def _some(items: list[str], most: int = 5) -> str:
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) if value else "none"
    return "none" if value is None or value == {} else str(value).lower() if isinstance(value, bool) else str(value)
