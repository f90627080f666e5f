"""The objects of a decorated class that live in this process: one for each set of constructor arguments."""

from __future__ import annotations

from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


KEPT = 64
"""Objects kept per class; the oldest makes room. An object that a proxy still uses lives on with the proxy."""


class Instances:
    """Makes an object at its first use and hands out the same one afterwards, so that a model is loaded once.

    Arguments are compared by `==`. Safe from several threads; a constructor that fails is tried again by the next call.
    """

    __slots__ = ("_lock", "_made", "_make")

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._made: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        self._lock = RLock()

    def get(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """The object made with these constructor arguments."""
        kwargs = kwargs or {}
        for known_args, known_kwargs, made in self._made:
            if _same(known_args, args) and _same(known_kwargs, kwargs):
                return made
        with self._lock:
            for known_args, known_kwargs, made in self._made:
                if _same(known_args, args) and _same(known_kwargs, kwargs):
                    return made
            made = self._make(*args, **kwargs)
            self._made = [*self._made[1 - KEPT :], (args, kwargs, made)]
            return made


def _same(one: object, other: object) -> bool:
    """Equal, where values that cannot say so (an array compares element by element) count as different."""
    try:
        return bool(one == other)
    except Exception:  # the comparison is the user's code
        return False
