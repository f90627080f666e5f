"""Which waiting call goes to which worker: the decision alone, over plain state."""

from hypothesis import given
from hypothesis import strategies as st
from queueing_fixtures import make_call

from flashmesh.kit.ids import BuildId, EndpointName, WorkerId
from flashmesh.queueing.assign import assign
from flashmesh.queueing.queues import SHARE, EndpointQueue
from flashmesh.queueing.slots import Slots, Worker

A, B = EndpointName("a"), EndpointName("b")


class Port:
    def send(self, frame: object) -> None: ...
    def close(self) -> None: ...


def worker(name: str, free: int = 1, *, build: str = "b1", used: float | None = None) -> Worker:
    made = Worker(WorkerId(name), build=BuildId(build), pid=1, port=Port(), free=free, now=100.0)
    if used is not None:
        made.last_used = used
    return made


def slots(*workers: Worker, build: str = "b1") -> Slots:
    made = Slots(BuildId(build))
    for each in workers:
        made.add(each)
    return made


def queue(*names: str, kind: str = "sync", build: str = "") -> EndpointQueue:
    made = EndpointQueue()
    for name in names:
        made.push(make_call(name, kind=kind, build=build))
    return made


def pairs(queues: dict[EndpointName, EndpointQueue], held: dict[EndpointName, Slots], now: float = 0.0) -> list[str]:
    return [f"{call.id}>{found.id}" for _, call, found in assign(queues, held, now)]


def test_nothing_is_sent_without_calls_or_without_slots() -> None:
    """Either is enough to wait."""
    assert pairs({A: queue()}, {A: slots(worker("w"))}) == []
    assert pairs({A: queue("c")}, {A: slots(worker("w", 0))}) == []
    assert pairs({A: queue("c")}, {A: slots()}) == []


def test_calls_go_in_order_to_the_worker_with_most_free_slots() -> None:
    """Load is spread; the queue's order is kept."""
    held = slots(worker("w1", 1), worker("w2", 2))
    assert pairs({A: queue("c1", "c2", "c3", "c4")}, {A: held}) == ["c1>w2", "c2>w1", "c3>w2"]


def test_of_equally_free_workers_the_one_used_last_gets_the_call() -> None:
    """The others may go idle and leave."""
    held = slots(worker("old", used=1.0), worker("recent", used=2.0))
    assert pairs({A: queue("c1")}, {A: held}) == ["c1>recent"]


def test_a_worker_that_became_ready_since_does_not_come_before_the_one_used_last() -> None:
    """Else the second of two calls to a class would find another instance than the first."""
    assert pairs({A: queue("c1")}, {A: slots(worker("used", used=1.0), worker("new"))}) == ["c1>used"]


def test_endpoints_take_turns() -> None:
    """A long queue at one does not come before the first call of another."""
    queues = {A: queue("a1", "a2", "a3"), B: queue("b1")}
    held = {A: slots(worker("wa", 3)), B: slots(worker("wb", 3))}
    assert pairs(queues, held) == ["a1>wa", "b1>wb", "a2>wa", "a3>wa"]


def test_calls_on_their_way_count_against_a_workers_slots() -> None:
    """What was sent and not begun is not free, whatever the last report said."""
    busy = worker("w", 2)
    busy.unstarted = 1
    assert pairs({A: queue("c1", "c2")}, {A: slots(busy)}) == ["c1>w"]


def test_a_draining_worker_gets_nothing() -> None:
    """Not even when it is the only one."""
    held = slots(leaving := worker("w"))
    held.drain(leaving)
    assert pairs({A: queue("c1")}, {A: held}) == []


def test_old_builds_serve_until_the_new_one_is_ready_and_not_after() -> None:
    """What was saved is what runs, as soon as it can."""
    old, new = worker("old", build="b1"), worker("new", 0, build="b2")
    assert pairs({A: queue("c1")}, {A: slots(old, build="b2")}) == ["c1>old"]
    assert pairs({A: queue("c1")}, {A: slots(old, new, build="b2")}) == []


def test_a_call_bound_to_a_build_waits_for_it_without_holding_up_others() -> None:
    """A function that only the new build has."""
    waiting = queue("bound", build="b2")
    waiting.push(make_call("free"))
    assert pairs({A: waiting}, {A: slots(worker("old", build="b1"), build="b2")}) == ["free>old"]


def test_sync_calls_go_first_but_async_ones_have_their_turn() -> None:
    """One async call after SHARE sync ones, however many sync calls wait."""
    waiting = queue(*(f"s{n}" for n in range(30)))
    for name in ("a0", "a1"):
        waiting.push(make_call(name, kind="async"))
    order = []
    for _ in range(22):
        (dispatch,) = assign({A: waiting}, {A: slots(worker("w"))}, 0.0)
        waiting.take(dispatch.call)
        order.append(dispatch.call.id)
    assert (order.index("a0"), order.index("a1")) == (SHARE, 2 * SHARE + 1)


def test_calls_in_back_off_are_not_sent_before_their_time() -> None:
    """Then they come first."""
    waiting = queue("c1")
    waiting.push_later(make_call("again"), due=10.0)
    held = {A: slots(worker("w"))}
    assert pairs({A: waiting}, held, now=9.9) == ["c1>w"]
    assert pairs({A: waiting}, held, now=10.0) == ["again>w"]


@given(
    st.lists(st.sampled_from(["sync", "async"]), max_size=30),
    st.lists(st.integers(0, 4), max_size=5),
    st.integers(0, 3),
)
def test_no_slot_is_used_twice_none_is_left_while_calls_wait_and_nothing_is_changed(
    kinds: list[str], free: list[int], unstarted: int
) -> None:
    """For any queue and any workers."""
    waiting = EndpointQueue()
    for number, kind in enumerate(kinds):
        waiting.push(make_call(f"c{number}", kind=kind))
    workers = [worker(f"w{number}", count) for number, count in enumerate(free)]
    for each in workers:
        each.unstarted = unstarted
    found = assign({A: waiting}, {A: slots(*workers)}, 0.0)
    assert len(found) == min(len(kinds), sum(each.free for each in workers))
    assert len({dispatch.call.id for dispatch in found}) == len(found)
    for each in workers:
        assert sum(dispatch.worker is each for dispatch in found) <= each.free
    assert len(waiting) == len(kinds)
    assert [dispatch.call for dispatch in found] == waiting.peek(len(found))


def test_a_worker_that_overran_a_call_does_not_get_its_next_attempt_but_gets_others() -> None:
    """It is stuck in the first one, or was; the calls behind are not held up."""
    stuck = worker("stuck")
    stuck.given_up.add(make_call("again").id)
    assert pairs({A: queue("again")}, {A: slots(stuck)}) == []
    assert pairs({A: queue("again", "c1")}, {A: slots(stuck)}) == ["c1>stuck"]
    assert pairs({A: queue("again", "c1")}, {A: slots(stuck, worker("fresh"))}) == ["again>fresh", "c1>stuck"]
