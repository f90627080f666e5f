"""`@worker_start`."""

import pytest

from flashmesh.functions.hooks import worker_start, worker_start_hooks
from flashmesh.functions.resources import LiveServerless

one = LiveServerless(name="one")
other = LiveServerless(name="other")


@worker_start
def for_all() -> str:
    return "all"


@worker_start(one)
async def for_one() -> str:
    return "one"


@worker_start(other)
def for_other() -> None: ...


def test_a_resource_s_workers_run_its_hooks_and_the_file_s() -> None:
    assert worker_start_hooks(globals(), [one]) == [for_all, for_one]
    assert worker_start_hooks(globals()) == [for_all]
    assert for_all() == "all"


def test_another_file_s_hooks_are_not_this_one_s() -> None:
    assert worker_start_hooks({"__name__": "another", "for_all": for_all}, [one]) == []


def test_only_functions_are_hooks() -> None:
    with pytest.raises(TypeError, match="worker_start"):
        worker_start(3)
