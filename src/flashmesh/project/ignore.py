"""Which paths `.gitignore` and `.flashignore` leave out, as git does: the deepest file that says something wins.

Only ignore files inside the project count: a rule above the root could hide the project as a whole.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILES = (".gitignore", ".flashignore")
"""Read in this order, as one file: a `.flashignore` may take back what `.gitignore` hides (`!generated.py`)."""


class IgnoreRules(msgspec.Struct, frozen=True):
    """The rules that hold in one folder: its own, then those of the folders above."""

    folder: str = ""
    """Relative to the root, empty or ending in a slash."""
    own: "GitIgnoreSpec | None" = None
    above: "IgnoreRules | None" = None
    excluded: "GitIgnoreSpec | None" = None
    """What a command's `--exclude` names, from the root: no ignore file takes it back."""

    @classmethod
    def excluding(cls, patterns: Sequence[str]) -> "IgnoreRules":
        """The rules above the root's own: `patterns`, as a `.gitignore` would have them."""
        return cls(excluded=_compile(list(patterns)) if patterns else None)

    def enter(self, folder: str, lines: list[str]) -> "IgnoreRules":
        """The rules inside `folder`, whose ignore files hold `lines`. A line git would not accept is left out."""
        if not lines:
            return self
        return IgnoreRules(folder=folder, own=_compile(lines), above=self, excluded=self.excluded)

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Whether `path` (relative to the root) is left out."""
        return self.says(path, is_folder=is_folder) is True

    def says(self, path: str, *, is_folder: bool) -> bool | None:
        """True: left out; False: taken back by a `!` line; None: no rule concerns it."""
        if self.excluded is not None and self.excluded.check_file(path + ("/" if is_folder else "")).include:
            return True
        rules: IgnoreRules | None = self
        while rules is not None:
            if rules.own is not None:
                relative = path[len(rules.folder) :] + ("/" if is_folder else "")
                verdict = rules.own.check_file(relative).include
                if verdict is not None:
                    return verdict
            rules = rules.above
        return None


def read_lines(folder: Path, names: set[str]) -> list[str]:
    """The lines of the ignore files of `folder`, given the names it holds. Unreadable files count as empty."""
    lines: list[str] = []
    for name in IGNORE_FILES:
        if name in names:
            try:
                lines += (folder / name).read_text("utf-8", "replace").splitlines()
            except OSError:
                continue
    return lines


def _compile(lines: list[str]) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec  # 20 ms, and only projects with ignore files need it

    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError:
        return GitIgnoreSpec.from_lines([line for line in lines if _is_pattern(line)])


def _is_pattern(line: str) -> bool:
    from pathspec import GitIgnoreSpec

    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True
