"""Two endpoints that serve functions of the same ids, as two environments of one app do: calls name theirs."""

import pytest
from queueing_fixtures import Bench, plan_of

from flashmesh.functions.errors import FunctionNotFound, IdempotencyConflict
from flashmesh.kit.ids import EndpointName

BLUE, GREEN = EndpointName("m-blue"), EndpointName("m-green")


def two_environments() -> Bench:
    bench = Bench(name=BLUE, by_name_only=True)
    bench.dispatcher.declare(plan_of(name=GREEN, by_name_only=True))
    return bench


def test_a_call_goes_to_the_endpoint_it_names() -> None:
    """Same function id, two endpoints: each has its own queue."""
    bench = two_environments()
    assert bench.call("e1", endpoint=BLUE).endpoint == BLUE
    assert bench.call("e2", endpoint=GREEN).endpoint == GREEN
    queued = {endpoint["name"]: endpoint["queued"] for endpoint in bench.dispatcher.status()["endpoints"]}
    assert queued == {BLUE: 1, GREEN: 1}


def test_an_idempotency_key_counts_within_the_endpoint_that_is_named() -> None:
    """The same key means one execution per environment, and a conflict only within one."""
    bench = two_environments()
    first = bench.call("e1", endpoint=BLUE, idempotency_key="k")
    assert bench.call("e2", endpoint=GREEN, idempotency_key="k", payload=b"[]").id == "e2"
    assert bench.call("e3", endpoint=BLUE, idempotency_key="k") is first
    with pytest.raises(IdempotencyConflict):
        bench.call("e4", endpoint=BLUE, idempotency_key="k", payload=b"[]")


def test_functions_that_are_called_by_endpoint_only_hide_nobody_elses() -> None:
    """A project served beside them keeps its functions when they come, and when they go."""
    bench = Bench()
    bench.dispatcher.declare(plan_of(name=BLUE, by_name_only=True))
    assert bench.call("e1").endpoint == "m"
    bench.dispatcher.withdraw(BLUE)
    assert bench.call("e2").endpoint == "m"


def test_an_endpoint_that_is_gone_or_does_not_serve_the_function_is_refused() -> None:
    """A name from before is no way around what is served now."""
    bench = two_environments()
    bench.dispatcher.withdraw(BLUE)
    with pytest.raises(FunctionNotFound):
        bench.call("e1", endpoint=BLUE)
    with pytest.raises(FunctionNotFound):
        bench.call_function("m.other", "e2", endpoint=GREEN)
