"""What a change of the project means for what runs: which templates are replaced, and whether the server child is."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of the project, reduced to what decides about reloads.

    Attributes:
        builds: per queue-based resource the build id over its configuration and import closure.
        server: what the server child was made of: the text of server.py and the sources that HTTP files can import.
    """

    builds: Mapping[str, str]
    server: str


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What has to be done to get from one snapshot to the next. Names are sorted."""

    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    server: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.updated or self.removed or self.server)


def compare(before: Snapshot, after: Snapshot) -> Changes:
    """Only what differs is replaced: a comment in one file leaves every other file's workers alone."""
    old, new = before.builds, after.builds
    return Changes(
        added=tuple(sorted(new.keys() - old.keys())),
        updated=tuple(sorted(name for name in new.keys() & old.keys() if new[name] != old[name])),
        removed=tuple(sorted(old.keys() - new.keys())),
        server=before.server != after.server,
    )


def in_words(changes: Changes, *, paths: frozenset[str]) -> str:
    """The line printed after a reload: what was saved, and what that replaced."""
    saved = ", ".join(sorted(paths)[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (("added", changes.added), ("reloaded", changes.updated), ("removed", changes.removed))
        if names
    ]
    if changes.server:
        parts.append("server")
    return f"{saved}: {'; '.join(parts)}" if parts else f"{saved}: nothing to reload"
