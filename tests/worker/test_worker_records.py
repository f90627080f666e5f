"""Records: what one process writes, another reads whole or not at all."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.worker.groups import GroupTable, Places
from flashmesh.worker.records import EXECUTION_BYTES, FUNCTION_BYTES, RecordTable, Running, State
from flashmesh.worker.template.deadlines import next_check_ns, overdue

names = st.text(min_size=1, max_size=20)


@pytest.fixture
def table():
    made = RecordTable.create(workers=3, slots=4)
    yield made
    made.close()


@given(execution=names, function=names, deadline_ns=st.integers(0, 2**62), slot=st.integers(0, 3))
def test_what_is_written_is_read(execution, function, deadline_ns, slot):
    """Every field of a running call arrives in the template as the worker wrote it."""
    table = RecordTable.create(workers=2, slots=4)
    try:
        table.record(1).set_running(slot, execution, function, deadline_ns, started_ns=7)
        (call,) = table.record(1).running()
        assert call == Running(slot, 1, True, execution, function, 7, deadline_ns)
        assert table.record(0).running() == []
    finally:
        table.close()


@given(torn=st.integers(1, 200), data=st.binary(min_size=1, max_size=40))
def test_a_torn_block_is_not_taken_for_a_call(torn, data):
    """Bytes that changed under the reader's hands are never reported as another call."""
    table = RecordTable.create(workers=1, slots=1)
    try:
        record = table.record(0)
        record.set_running(0, "execution", "module.function", 99, started_ns=5)
        whole = record.running()
        start = record._call_offset(0) + torn
        table._memory[start : start + len(data)] = data
        assert record.running() in ([], whole)
    finally:
        table.close()


@given(st.lists(st.tuples(st.sampled_from(["run", "clear", "ready", "leave"]), st.integers(0, 3)), max_size=30))
def test_records_follow_a_simple_model(steps):
    """After any sequence of writes the readers see what a dictionary would hold."""
    table = RecordTable.create(workers=1, slots=4)
    try:
        writer, reader = table.record(0), table.record(0)
        writer.begin(42)
        running: dict[int, str] = {}
        state = State.STARTING
        for number, (step, slot) in enumerate(steps):
            if step == "run":
                writer.set_running(slot, f"x{number}", "f", 0)
                running[slot] = f"x{number}"
            elif step == "clear":
                writer.clear(slot)
                running.pop(slot, None)
            elif step == "ready":
                writer.set_ready(slot)
                state = State.READY
            else:
                writer.set_leaving()
                state = State.LEAVING
            assert {call.slot: call.execution for call in reader.running()} == running
            assert reader.head().state is state
            assert reader.head().pid == 42
    finally:
        table.close()


def test_long_names_are_cut_and_unicode_survives(table):
    """A name longer than its field is cut, even within a character; nothing else suffers."""
    record = table.record(0)
    record.set_running(0, "e" * 200, "ü" * 200, 1)
    (call,) = record.running()
    assert call.execution == "e" * EXECUTION_BYTES
    assert call.function.startswith("ü" * (FUNCTION_BYTES // 2 - 1))
    assert call.deadline_ns == 1


def test_a_request_means_one_call_and_not_the_next_in_its_slot(table):
    """A cancel that comes too late does not hit the call that has the slot by then."""
    worker, template = table.record(0), table.record(0)
    worker.set_running(2, "first", "f", 0)
    (call,) = template.running()
    template.demand(call, "timeout")
    assert [(request.execution, request.reason) for request in worker.requests()] == [("first", "timeout")]
    worker.clear(2)
    assert worker.requests() == []
    worker.set_running(2, "second", "f", 0)
    assert worker.requests() == []


def test_an_ended_call_stays_readable_for_its_last_output(table):
    """Its names are needed for lines that are still in a pipe."""
    record = table.record(0)
    record.set_running(0, "x", "m.f", 0)
    record.clear(0)
    assert record.running() == []
    assert [(call.execution, call.running) for call in record.calls()] == [("x", False)]


def test_a_forked_process_shares_the_table(table):
    """The zygote's children write where the template reads."""
    pid = os.fork()
    if pid == 0:
        table.record(2).begin(os.getpid())
        os._exit(0)
    os.waitpid(pid, 0)
    assert table.record(2).head().pid == pid


def test_another_process_attaches_by_descriptor(table):
    """A spawned worker finds the same numbers; anything else is refused with what to do."""
    table.record(1).begin(5)
    attached = RecordTable.attach(os.dup(table.fd))
    assert attached.record(1).head().pid == 5
    attached.close()
    wrong = os.memfd_create("x")
    os.write(wrong, bytes(64))
    with pytest.raises(ValueError, match="template"):
        RecordTable.attach(wrong)
    os.close(wrong)


def test_a_reset_record_is_nobodys(table):
    """The next worker of that index starts from nothing."""
    table.record(0).begin(9)
    table.record(0).set_running(1, "x", "f", 0)
    table.record(0).reset()
    assert table.record(0).head().state is State.EMPTY
    assert table.record(0).calls() == []
    with pytest.raises(IndexError):
        table.record(3)


def call(deadline_ns: int, running: bool = True) -> Running:
    return Running(0, 1, running, "x", "f", 0, deadline_ns)


def test_only_running_calls_past_their_deadline_are_overdue():
    """A deadline of 0 is none, and an ended call has none."""
    late = call(10)
    assert overdue([late, call(0), call(30), call(5, running=False)], 20) == [late]


def test_the_next_look_is_at_the_earliest_deadline_or_one_limit_from_now():
    """An idle worker can exceed the limit one full limit from now at the earliest; without limits there is no look."""
    assert next_check_ns([call(50), call(90)], workers=2, limit_ns=1000, now_ns=20) == 50
    assert next_check_ns([], workers=1, limit_ns=1000, now_ns=20) == 1020
    assert next_check_ns([], workers=0, limit_ns=1000, now_ns=20) is None
    assert next_check_ns([call(0)], workers=1, limit_ns=0, now_ns=20) is None


def test_group_table_lists_who_is_left():
    """The keeper reads from it whom a dead template has left behind."""
    table = GroupTable.create()
    places = Places()
    first, second = places.take(), places.take()
    table.enter(first, 111)
    table.enter(second, 222)
    table.leave(first)
    assert GroupTable.attach(os.dup(table.fd)).pids() == [222]
    places.give(first)
    assert places.take() == first
    table.clear()
    assert table.pids() == []
    table.close()
