"""Calls of one kind and priority: each function's in the order they came, and the functions in turn.

Functions of one endpoint share its workers. A thousand calls of a slow one must not stand before the first call of
another, so each function that waits gives one call per round.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

from flashmesh.kit.ids import FunctionId
from flashmesh.queueing.calls import Call


class Turns:
    """A line whose head is the first call of the function whose turn it is."""

    __slots__ = ("by_function",)

    def __init__(self) -> None:
        self.by_function: OrderedDict[FunctionId, deque[Call]] = OrderedDict()
        """By function, next turn first. No line is empty."""

    def __len__(self) -> int:
        return sum(map(len, self.by_function.values()))

    def __iter__(self) -> Iterator[Call]:
        """In the order in which they leave if nothing else comes."""
        lines = [iter(line) for line in self.by_function.values()]
        while lines:
            if len(lines) == 1:
                yield from lines[0]
                return
            going = []
            for line in lines:
                call = next(line, None)
                if call is not None:
                    going.append(line)
                    yield call
            lines = going

    def waits(self, function: FunctionId) -> bool:
        """Whether a call of this function is here."""
        return function in self.by_function

    def head(self) -> Call:
        """The next to leave. Raises IndexError when nothing waits."""
        for line in self.by_function.values():
            return line[0]
        raise IndexError

    def heads(self) -> Iterator[Call]:
        """The first call of each function."""
        return (line[0] for line in self.by_function.values())

    def order(self, limit: int) -> list[Call]:
        return list(islice(self, limit))

    def append(self, call: Call) -> None:
        """Last of its function."""
        line = self.by_function.get(call.execution.function)
        if line is None:
            self.by_function[call.execution.function] = deque((call,))
        else:
            line.append(call)

    def appendleft(self, call: Call) -> None:
        """First of all."""
        function = call.execution.function
        line = self.by_function.get(function)
        if line is None:
            line = self.by_function[function] = deque()
        line.appendleft(call)
        self.by_function.move_to_end(function, last=False)

    def take(self, call: Call) -> None:
        """It goes to a worker, and the other functions have their turn."""
        function, lines = call.execution.function, self.by_function
        line = lines[function]
        if line[0] is call:
            line.popleft()
        else:
            line.remove(call)
        if not line:
            del lines[function]
        elif len(lines) > 1:
            lines.move_to_end(function)

    def remove(self, call: Call) -> None:
        """Wherever it stands; the first of its function costs nothing. Raises ValueError: it is not here."""
        function = call.execution.function
        line = self.by_function.get(function)
        if line is None:
            raise ValueError(call)
        if line[0] is call:
            line.popleft()
        else:
            line.remove(call)
        if not line:
            del self.by_function[function]

    def clear(self) -> None:
        self.by_function.clear()
