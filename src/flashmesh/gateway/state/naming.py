"""What is said about a name that is not there."""

from collections.abc import Sequence
from typing import TypeVar

from flashmesh.functions.nearest import did_you_mean
from flashmesh.gateway.state.records import StateError

E = TypeVar("E", bound=StateError)


def not_found(kind: type[E], what: str, name: str, known: Sequence[str]) -> E:
    """The error: `what` without its name, the name that was probably meant, and what to do."""
    near = did_you_mean(name, known)
    return kind(f"{what} {name!r}{near}. {' '.join(str(kind.__doc__).split('. ', 1)[-1].split())}")
