"""What a setting's value must be: one small function per kind of value.

Each takes the setting's name and the value as written, and returns it in the one form the rest of the product reads.
All raise DeclarationError (a ValueError) that names the setting and says what it takes.
"""

from __future__ import annotations

from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.hardware import (
    CpuInstanceType,
    CudaVersion,
    DataCenter,
    GpuGroup,
    ServerlessScalerType,
    ServerlessType,
)
from flashmesh.functions.nearest import did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum
    from typing import Any

    from flashmesh.functions.gpu_types import GpuType

    Check = Callable[[str, Any], Any]

MODES = {
    "WARM": "WARM",
    "JOB": "JOB",
    "EXTERNAL": "EXTERNAL",
    "DEPLOYMENT": "WARM",
    "POOL": "WARM",
    "REMOTE": "EXTERNAL",
}
"""Accepted spellings of `mode` and what they mean."""

PYTHON_VERSIONS = ("3.10", "3.11", "3.12", "3.13")


def _refuse(name: str, wants: str, value: object) -> DeclarationError:
    return DeclarationError(f"{name} must be {wants}, got {value!r}.")


def integer(minimum: int, maximum: int | None = None) -> Check:
    """A whole number within bounds; `"3"` and `3.0` count as 3."""
    wants = f"a whole number of at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")

    def check(name: str, value: Any) -> int:
        digits = isinstance(value, str) and value.strip().lstrip("-").isdigit()
        if digits or (isinstance(value, float) and value.is_integer()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _refuse(name, wants, value)
        if value < minimum or (maximum is not None and value > maximum):
            raise _refuse(name, wants, value)
        return value

    return check


def seconds(name: str, value: Any) -> float:
    """A number of seconds above zero."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _refuse(name, "a number of seconds", value) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _refuse(name, "a number of seconds above 0", value)
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, "True or False", value)
    return value


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(name, "a string", value)
    return value


def some_text(name: str, value: Any) -> str:
    """A string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise _refuse(name, "a string that is not empty", value)
    return value


def texts(name: str, value: Any) -> list[str]:
    """A list of strings. One string alone is refused: it is nearly always a list that lost its brackets."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise _refuse(name, "a list of strings", value)
    items = list(value)
    for item in items:
        if not isinstance(item, str) or not item.strip():
            raise _refuse(name, "a list of strings", value)
    return items


def environment(name: str, value: Any) -> dict[str, str]:
    """Names to values, both strings. The message never shows a value: it may be a secret."""
    if not hasattr(value, "items"):
        raise DeclarationError(f"{name} must be a dictionary of strings, got {type(value).__name__}.")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise DeclarationError(
                f"{name}[{key!r}] must be a string, got {type(item).__name__}. Write str(…) around it."
            )
    return dict(value)


def mapping(name: str, value: Any) -> dict[str, Any]:
    if not hasattr(value, "items"):
        raise _refuse(name, "a dictionary", value)
    return dict(value)


def anything(name: str, value: Any) -> Any:
    return value


def _member(kind: type[Enum], name: str, value: Any) -> Any:
    """A member of `kind`, given itself, by name or by value."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        found = kind.__members__.get(value) or next((item for item in kind if item.value == value), None)
        if found is not None:
            return found
    known = [*kind.__members__, *(str(item.value) for item in kind)]
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    raise DeclarationError(f"{name} must be a {kind.__name__}, got {value!r}{hint}.")


def member(kind: type[Enum]) -> Check:
    def check(name: str, value: Any) -> Any:
        return _member(kind, name, value)

    return check


def members(kind: type[Enum]) -> Check:
    """A list of members of `kind`; one alone is a list of one."""

    def check(name: str, value: Any) -> list[Any]:
        items = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
        return [_member(kind, name, item) for item in items]

    return check


def gpus(name: str, value: Any) -> list[GpuGroup | GpuType]:
    """GpuGroup and GpuType members, or their names; one alone is a list of one."""
    items = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    return [_gpu(name, item) for item in items]


def _gpu(name: str, value: Any) -> GpuGroup | GpuType:
    if isinstance(value, GpuGroup):
        return value
    from flashmesh.functions.gpu_types import GpuType  # over a hundred names, which few programs use

    if isinstance(value, GpuType):
        return value
    if isinstance(value, str):
        for kind in (GpuGroup, GpuType):
            found = kind.__members__.get(value) or next((item for item in kind if item.value == value), None)
            if found is not None:
                return found
    known = [*GpuGroup.__members__, *GpuType.__members__]
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    raise DeclarationError(f"{name} must be a GpuGroup or a GpuType, got {value!r}{hint}.")


def datacenters(name: str, value: Any) -> list[DataCenter]:
    """DataCenter members, or their names in any spelling; one alone is a list of one."""
    items = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    found = []
    for item in items:
        if isinstance(item, DataCenter):
            found.append(item)
            continue
        if not isinstance(item, str):
            raise _refuse(name, "a DataCenter or its name", item)
        try:
            found.append(DataCenter.from_string(item))
        except ValueError as error:
            raise DeclarationError(f"{name}: {error}") from None
    return found


def datacenter(name: str, value: Any) -> DataCenter:
    """Exactly one data centre."""
    found = datacenters(name, value)
    if len(found) != 1:
        raise _refuse(name, "one DataCenter", value)
    return found[0]


def python_version(name: str, value: Any) -> str:
    if value not in PYTHON_VERSIONS:
        raise _refuse(name, f"one of {', '.join(PYTHON_VERSIONS)}", value)
    return str(value)


def mode(name: str, value: Any) -> str:
    """WARM, JOB or EXTERNAL; DEPLOYMENT, POOL and REMOTE are read as the same."""
    known = MODES.get(value.upper()) if isinstance(value, str) else None
    if known is None:
        raise _refuse(name, "'WARM', 'JOB' or 'EXTERNAL'", value)
    return known


def exceptions(name: str, value: Any) -> tuple[str, ...]:
    """Exception classes, or their names, as `module.qualname`; one alone is a tuple of one."""
    items = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    names = []
    for item in items:
        if isinstance(item, str) and item.strip():
            names.append(item if "." in item else f"builtins.{item}")
        elif isinstance(item, type) and issubclass(item, BaseException):
            names.append(f"{item.__module__}.{item.__qualname__}")
        else:
            raise _refuse(name, "exception classes such as (ConnectionError, TimeoutError)", item)
    return tuple(names)


def workers(name: str, value: Any) -> tuple[int, int]:
    """`n` is (0, n), a pair is (min, max), None is (0, 1)."""
    if value is None:
        return (0, 1)
    if isinstance(value, int) and not isinstance(value, bool):
        pair = (0, value)
    elif isinstance(value, list | tuple) and len(value) == 2:
        count = integer(-(2**31))
        pair = (count(name, value[0]), count(name, value[1]))
    else:
        raise _refuse(name, "a number or a pair (min, max)", value)
    if min(pair) < 0:
        raise DeclarationError(f"{name} cannot be negative, got {value!r}.")
    if pair[0] > pair[1]:
        raise DeclarationError(f"{name}: the minimum {pair[0]} is above the maximum {pair[1]}.")
    return pair


scaler = member(ServerlessScalerType)
kind = member(ServerlessType)
cpu_instances = members(CpuInstanceType)
cuda_version = member(CudaVersion)
cuda_versions = members(CudaVersion)
