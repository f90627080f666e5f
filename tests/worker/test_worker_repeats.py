"""When a worker makes a call of a peer again."""

import pytest

from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import NotEncodable, QueueFull, RemoteError, TimedOut, ValidationError, WorkerLost
from flashmesh.worker.calls.exchange import NotReached
from flashmesh.worker.calls.peer_call import Moved, NotRun
from flashmesh.worker.calls.repeats import Repeats, may_repeat


def config(**changes: object) -> ResourceConfig:
    return ResourceConfig(resource_type="LiveServerless", **changes)  # type: ignore[arg-type]


class OutOfStock(LookupError):
    pass


@pytest.mark.parametrize(
    ("error", "retry_on", "repeated"),
    [
        (WorkerLost(), (), True),
        (WorkerLost(), ("builtins.OSError",), True),
        (OutOfStock(), (), True),
        (OutOfStock(), ("builtins.LookupError",), True),
        (OutOfStock(), ("builtins.OSError",), False),
        (RemoteError("x", type_name="shop.Closed"), ("shop.Closed",), True),
        (RemoteError("x", type_name="shop.Closed"), ("shop.Open",), False),
        (TimedOut(), (), True),
        (TimedOut(), ("builtins.TimeoutError",), True),
        (TimedOut(), ("builtins.ValueError",), False),
        (ValidationError(), (), False),
        (NotEncodable(), (), False),
        (QueueFull(), (), False),
    ],
)
def test_what_may_have_run_is_repeated_as_its_function_declares(
    error: Exception, retry_on: tuple[str, ...], repeated: bool
) -> None:
    """A lost worker always; its own exceptions and time limit if `retry_on` says so; what is refused never."""
    declared = config(retries=2, retry_on=retry_on)
    assert [may_repeat(declared, error, attempt=number) for number in (1, 2, 3)] == [repeated, repeated, False]
    assert not may_repeat(config(), error, attempt=1)


def test_an_endpoint_that_nobody_answers_for_is_looked_up_once_more() -> None:
    """Without a pause, and whatever the function declares: nothing has run."""
    for error in (NotReached(), NotRun(), Moved()):
        repeats = Repeats(config)
        assert repeats.pause_s(error) == 0
        assert repeats.looks
        with pytest.raises(type(error)):
            repeats.pause_s(error)


def test_pauses_grow() -> None:
    repeats = Repeats(lambda: config(retries=3))
    pauses = [repeats.pause_s(WorkerLost()) for _ in range(3)]
    assert 0.05 <= pauses[0] <= 0.1 <= pauses[1] <= 0.2 <= pauses[2] <= 0.4
    with pytest.raises(WorkerLost):
        repeats.pause_s(WorkerLost())
