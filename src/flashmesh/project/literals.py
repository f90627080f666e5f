"""Operators and conversions on plain values: the part of Python the scan computes itself. Pure.

Only what cannot run user code, cannot take long and cannot need much memory is computed; the rest raises NotPlain.
"""

import ast
import operator
from collections.abc import Callable, Iterable
from typing import Any

LONGEST = 65_536
"""Longest string or container a computation may give."""
_LARGEST = 2**64


class NotPlain(Exception):
    """This value is not one the scan computes."""


_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}
CONVERSIONS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (bool, int, float, str, list, tuple, dict, set, frozenset, sorted, len, min, max)
}
"""Built-in calls that are computed when all their arguments are plain."""
_METHODS = frozenset(
    {"lower", "upper", "strip", "split", "replace", "removeprefix", "removesuffix", "get", "copy", "title"}
)


def unary(op: ast.unaryop, operand: Any) -> Any:
    """`-x`, `not x`. Raises NotPlain."""
    return _computed(_UNARY[type(op)], operand)


def binary(op: ast.operator, left: Any, right: Any) -> Any:
    """Sums, unions and small products. Raises NotPlain, also for what Python itself would refuse."""
    compute = _BINARY.get(type(op))
    if compute is None:
        raise NotPlain
    if isinstance(op, ast.Mult):
        _check_product(left, right)
    return _computed(compute, left, right)


def compare(ops: Iterable[ast.cmpop], values: list[Any]) -> bool:
    """A chain of comparisons. Raises NotPlain."""
    return all(
        _computed(_COMPARE[type(op)], left, right) for op, left, right in zip(ops, values, values[1:], strict=False)
    )


def subscript(container: Any, key: Any) -> Any:
    """`container[key]`. Raises NotPlain, also when it is not in there."""
    if not isinstance(container, (dict, list, tuple, str)):
        raise NotPlain
    return _computed(operator.getitem, container, key)


def convert(name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """One of CONVERSIONS applied. Raises NotPlain."""
    return _computed(CONVERSIONS[name], *arguments, **keywords)


def call_method(owner: Any, name: str, arguments: list[Any]) -> Any:
    """A harmless method of a string, dict or list. Raises NotPlain."""
    if name not in _METHODS or not isinstance(owner, (str, dict, list)):
        raise NotPlain
    return _computed(getattr(owner, name, _missing), *arguments)


def formatted(value: Any, conversion: int) -> str:
    """One `{value!r}` of an f-string (without a format specification). Raises NotPlain."""
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise NotPlain
    return repr(value) if conversion == ord("r") else str(value)


def _missing(*_: Any) -> Any:
    raise NotPlain


def _computed(compute: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    try:
        result = compute(*arguments, **keywords)
    except (ArithmeticError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise NotPlain from error
    if isinstance(result, (str, bytes, list, tuple, dict, set, frozenset)) and len(result) > LONGEST:
        raise NotPlain
    if isinstance(result, int) and abs(result) > _LARGEST:
        raise NotPlain
    return result


def _check_product(left: Any, right: Any) -> None:
    for factor, other in ((left, right), (right, left)):
        if isinstance(factor, (str, bytes, list, tuple)) and not (
            isinstance(other, int) and len(factor) * other <= LONGEST
        ):
            raise NotPlain
        if isinstance(factor, int) and abs(factor) > _LARGEST:
            raise NotPlain
