"""Timing in pairs: product and floor take turns, so that a machine whose speed drifts is fair to both."""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

Seconds = float


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report: `value` and `floor` in `unit`; `ratio` is the first over the second."""

    name: str
    value: float
    unit: str
    floor_name: str = ""
    floor: float | None = None
    goal: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.floor if self.floor else None


def timed(action: Callable[[], object]) -> Seconds:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def in_turns(product: Callable[[], Seconds], floor: Callable[[], Seconds], rounds: int) -> tuple[Seconds, Seconds]:
    """The medians of both, measured A B B A A B …, after one uncounted turn of each."""
    product()
    floor()
    products: list[Seconds] = []
    floors: list[Seconds] = []
    for number in range(rounds):
        order = ((product, products), (floor, floors))
        for action, into in order if number % 2 else reversed(order):
            into.append(action())
    return statistics.median(products), statistics.median(floors)


def python(*arguments: str) -> Seconds:
    """How long a fresh interpreter takes from start to exit."""
    return timed(lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
