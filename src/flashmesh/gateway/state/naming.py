"""Names of apps and environments, and what is said about one that is not there."""

import re
from collections.abc import Sequence
from typing import Final, TypeVar

from flashmesh.functions.errors import ValidationError
from flashmesh.functions.nearest import did_you_mean
from flashmesh.gateway.state.records import StateError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
E = TypeVar("E", bound=StateError)


def check_name(name: str, *, what: str = "app") -> str:
    """`name`, when an app or an environment may have it. Raises ValidationError."""
    if NAME.fullmatch(name):
        return name
    raise ValidationError(
        f"{name!r} cannot be the name of an {what}: names have 1 to 63 letters, digits, '.', '_' and '-', and begin "
        "with a letter or a digit.",
        field=what,
    )


def not_found(kind: type[E], what: str, name: str, known: Sequence[str]) -> E:
    """The error, with the name that was probably meant."""
    near = did_you_mean(name, known)
    return kind(f"There is no {what} {name!r}{near}. {' '.join(str(kind.__doc__).split('. ', 1)[-1].split())}")
