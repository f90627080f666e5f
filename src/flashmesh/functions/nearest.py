"""The nearest known name to one that was mistyped."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the empty string when nothing is near."""
    from difflib import get_close_matches  # only an error needs it

    near = get_close_matches(name.lower(), {candidate.lower(): None for candidate in known}, n=1, cutoff=0.6)
    if not near:
        return ""
    spelled = next(candidate for candidate in known if candidate.lower() == near[0])
    return f" (did you mean {spelled!r}?)"


def reject_unknown(callee: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError that names each unknown keyword and what was probably meant. Nothing unknown: returns."""
    known = list(known)
    named = [f"{name!r}{did_you_mean(name, known)}" for name in sorted(unknown)]
    if named:
        noun = "argument" if len(named) == 1 else "arguments"
        raise TypeError(f"{callee}() got unknown keyword {noun} {', '.join(named)}")
