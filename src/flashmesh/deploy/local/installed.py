"""Which requirements the running interpreter meets already, with their version limits, extras and markers."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion


def missing(requirements: Iterable[str]) -> list[str]:
    """Those of `requirements` that are not met here, as written, in their order.

    What is no requirement with a name (a path, a bare URL) cannot be told and counts as missing. One whose marker does
    not apply here is met.
    """
    return [line for line in dict.fromkeys(requirements) if not _is_met(line)]


def parsed(line: str) -> Requirement | None:
    """The requirement, or None for what pip accepts but has no name."""
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def _is_met(line: str) -> bool:
    requirement = parsed(line)
    return requirement is not None and _met(requirement, {""}, set())


def _met(requirement: Requirement, extras: set[str], seen: set[tuple[str, str]]) -> bool:
    if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
        return True
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        return False
    try:
        if not requirement.specifier.contains(found.version, prereleases=True):
            return False
    except InvalidVersion:
        return False
    for extra in sorted(requirement.extras):
        key = (canonicalize_name(requirement.name), canonicalize_name(extra))
        if key in seen:
            continue
        seen.add(key)
        for line in found.requires or ():
            needed = parsed(line)
            if needed is None or needed.marker is None:
                continue
            if needed.marker.evaluate({"extra": ""}) or not needed.marker.evaluate({"extra": extra}):
                continue
            if not _met(needed, {extra}, seen):
                return False
    return True
