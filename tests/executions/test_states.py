"""An execution moves along the transition table, and no other way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.executions.record import Execution, StaleAttempt
from flashmesh.executions.states import FINAL, TRANSITIONS, Event, IllegalTransition, Status, next_status
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId

LEGAL = {
    (Status.QUEUED, Event.START): Status.RUNNING,
    (Status.QUEUED, Event.FAIL): Status.ERROR,
    (Status.QUEUED, Event.TIME_OUT): Status.TIMEOUT,
    (Status.QUEUED, Event.CANCEL): Status.CANCELLED,
    (Status.RUNNING, Event.SUCCEED): Status.SUCCESS,
    (Status.RUNNING, Event.FAIL): Status.ERROR,
    (Status.RUNNING, Event.TIME_OUT): Status.TIMEOUT,
    (Status.RUNNING, Event.CANCEL): Status.CANCELLED,
    (Status.RUNNING, Event.REQUEUE): Status.QUEUED,
}


def execution() -> Execution:
    return Execution(ExecutionId("e"), FunctionId("m.f"), EndpointName("m"), "sync", 0.0)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("event", Event)
def test_only_the_transitions_of_the_table_happen_and_an_illegal_event_changes_nothing(
    status: Status, event: Event
) -> None:
    """Each of the 36 pairs either leads where the table says or raises and leaves the execution as it was."""
    one = execution()
    one.status = status
    if (status, event) in LEGAL:
        one.advance(event, 1)
        assert one.status is LEGAL[(status, event)] is next_status(status, event)
    else:
        with pytest.raises(IllegalTransition, match="nothing was changed"):
            one.advance(event, 1)
        assert (one.status, one.attempt) == (status, 1)


def test_success_error_timeout_and_cancelled_are_final() -> None:
    """No event leads out of the four final states."""
    assert {Status.SUCCESS, Status.ERROR, Status.TIMEOUT, Status.CANCELLED} == FINAL
    assert not any(TRANSITIONS[status] for status in FINAL)


@given(st.lists(st.sampled_from(Event)), st.data())
def test_whatever_happens_a_terminal_state_never_changes_and_attempts_only_grow(
    events: list[Event], data: st.DataObject
) -> None:
    """Any order of events, stale ones among them, keeps both."""
    one = execution()
    for event in events:
        before, attempt = one.status, one.attempt
        claimed = data.draw(st.integers(0, 3))
        try:
            one.advance(event, claimed)
        except (IllegalTransition, StaleAttempt):
            assert (one.status, one.attempt) == (before, attempt)
        assert one.attempt in (attempt, attempt + (event is Event.REQUEUE))
        if before in FINAL:
            assert one.status is before


def test_an_answer_of_an_attempt_that_is_over_is_fenced() -> None:
    """After an internal retry the first attempt can no longer end the execution."""
    one = execution()
    one.advance(Event.START, 1)
    one.advance(Event.REQUEUE, 1)
    one.advance(Event.START, 2)
    with pytest.raises(StaleAttempt):
        one.advance(Event.SUCCEED, 1)
    assert one.status is Status.RUNNING
