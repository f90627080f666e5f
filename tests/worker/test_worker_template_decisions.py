"""How many workers, when to look at the socket, what a line of output belongs to: decisions, without processes."""

from hypothesis import given
from hypothesis import strategies as st

from flashmesh.wire.frames import Log
from flashmesh.worker.records import Head, Running, State
from flashmesh.worker.template.demand import (
    PATIENCE_S,
    Crew,
    Limits,
    crew_of,
    forks_wanted,
    settle_s,
    start_pause_s,
    watches,
)
from flashmesh.worker.template.output import BURST, KEPT_LINES, LINE_BYTES, Lines, LogOutlet, attribute

counts = st.integers(0, 10)
crews = st.builds(Crew, live=counts, starting=counts, free=counts, fresh=counts)
limits = st.builds(Limits, minimum=counts, maximum=st.integers(1, 10), demand=counts, one_shot=st.booleans())


@given(crews, limits, st.booleans())
def test_workers_never_exceed_the_maximum(crew, limits, taken):
    """Whatever is asked for."""
    wanted = forks_wanted(crew, limits, taken=taken)
    assert wanted >= 0
    assert wanted == 0 or crew.live + wanted <= limits.maximum


@given(crews, limits)
def test_the_socket_is_watched_only_where_a_worker_would_be_made(crew, limits):
    """Not at the maximum, and not while somebody is free or starting."""
    assert not watches(crew, limits) or (crew.live < limits.maximum and not crew.free and not crew.starting)


def test_demand_and_minimum_are_both_floors():
    """The larger one counts."""
    assert forks_wanted(Crew(live=1), Limits(minimum=3, maximum=9, demand=2)) == 2
    assert forks_wanted(Crew(live=1), Limits(minimum=1, maximum=9, demand=5)) == 4
    assert forks_wanted(Crew(live=6), Limits(minimum=1, maximum=9, demand=5)) == 0


def test_job_mode_keeps_one_fresh_worker_once_it_was_called():
    """Not before the first call, and not beyond the maximum."""
    job = Limits(maximum=2, one_shot=True)
    assert forks_wanted(Crew(), job) == 0
    assert forks_wanted(Crew(live=1, fresh=0), job, taken=True) == 1
    assert forks_wanted(Crew(live=2, fresh=1), job, taken=True) == 0
    assert forks_wanted(Crew(live=2, fresh=0), job, taken=True) == 0


def test_a_slow_start_does_not_count_as_free_for_ever():
    """A worker whose hooks take long stops holding back others."""
    starting = Head(1, State.STARTING, 0, 0)
    assert crew_of([(starting, PATIENCE_S / 2)]).starting == 1
    assert crew_of([(starting, PATIENCE_S * 2)]).starting == 0
    assert crew_of([(Head(0, State.EMPTY, 0, 0), 0.0)]).starting == 1, "forked, but not yet running"
    assert crew_of([(Head(1, State.READY, 1, 5), 9.0), (Head(2, State.READY, 0, 1), 9.0)]) == Crew(2, 0, 1, 0)


def test_the_settling_time_doubles_per_fork():
    """2 ms, 4, 8 …; nothing to wait for where there is no worker."""
    busy = Crew(live=1)
    assert [settle_s(busy, forks) for forks in (0, 1, 2)] == [0.002, 0.004, 0.008]
    assert settle_s(busy, 30) == 0.25
    assert settle_s(Crew(), 3) == 0.0


def test_starts_that_fail_are_tried_ever_more_slowly():
    """The first failure may be an accident."""
    assert [start_pause_s(failures) for failures in (0, 1, 2, 3, 30)] == [0.0, 0.0, 0.2, 0.4, 30.0]


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_lines_are_the_same_however_the_bytes_come(pieces):
    """Cut anywhere, the lines are those of the whole."""
    lines = Lines()
    found = [line for piece in pieces for line in lines.feed(piece)] + lines.rest()
    whole = b"".join(pieces).split(b"\n")
    if whole[-1] == b"":
        whole.pop()
    assert found == [line.removesuffix(b"\r").decode(errors="replace") for line in whole]


def test_an_endless_line_is_cut():
    """No frame grows beyond its limit, and nothing is lost."""
    lines = Lines()
    found = lines.feed(b"x" * (3 * LINE_BYTES + 5)) + lines.feed(b"y\n" + b"z" * (2 * LINE_BYTES) + b"\n")
    assert all(len(line) <= LINE_BYTES for line in found)
    assert "".join(found) == "x" * (3 * LINE_BYTES + 5) + "y" + "z" * (2 * LINE_BYTES)


def call(execution: str, function: str = "f", *, running: bool = True, started_ns: int = 0) -> Running:
    return Running(0, 1, running, execution, function, started_ns, 0)


def test_output_is_the_running_calls_or_the_last_ones():
    """With several running only what they have in common is said."""
    assert attribute([]) == ("", "")
    assert attribute([call("a"), call("b", running=False)]) == ("f", "a")
    assert attribute([call("a", running=False, started_ns=1), call("b", "g", running=False, started_ns=2)]) == (
        "g",
        "b",
    )
    assert attribute([call("a"), call("b")]) == ("f", "")
    assert attribute([call("a"), call("b", "g")]) == ("", "")


class Session:
    """Takes lines while it is `open`."""

    def __init__(self) -> None:
        self.open = True
        self.got: list[Log] = []
        self.now = 0.0

    def send(self, log: Log) -> bool:
        if self.open:
            self.got.append(log)
        return self.open


def line(number: int) -> Log:
    return Log("e", "w", "stdout", f"line {number}")


def test_lines_wait_for_a_session_and_the_oldest_give_way():
    """What was dropped is told with the first line that goes out, once."""
    session = Session()
    session.open = False
    outlet = LogOutlet(session.send, clock=lambda: session.now)
    for number in range(KEPT_LINES + 7):
        outlet.put(line(number))
    assert outlet.push() is not None
    session.open = True
    session.now = 1000.0
    outlet.push()
    assert (session.got[0].text, session.got[0].dropped) == ("line 7", 7)
    assert session.got[1].dropped == 0


def test_a_flood_goes_out_no_faster_than_the_limit():
    """A burst passes at once, the rest at its rate; nothing is lost that fits the buffer."""
    session = Session()
    outlet = LogOutlet(session.send, clock=lambda: session.now)
    total = int(BURST) + 500
    for number in range(total):
        outlet.put(line(number))
    assert outlet.push() is not None
    assert len(session.got) == BURST
    session.now = 0.1
    outlet.push()
    assert len(session.got) == BURST + 200
    session.now = 10.0
    assert outlet.push() is None
    assert [log.text for log in session.got] == [f"line {number}" for number in range(total)]
