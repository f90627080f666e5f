"""Callers that are turned away in large numbers: everyone is answered, in order, and the others have their turn."""

import asyncio
import itertools

from front_connection import Lone, Transport
from front_fixtures import PLAIN, Site, get, post, serving
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.gateway.front.connection import Connection
from flashmesh.gateway.front.crowd import LEAST, MAX_BYTES, SHARE, Crowd
from flashmesh.gateway.http import Answer, Request, Respond

FULL = get("/full")
MANY = 4 * LEAST


def full(request: Request, respond: Respond) -> None:
    respond(Answer(429, [PLAIN], b"not now"))


class Place:
    """A server without sockets whose `/full` turns everybody away, inside a running loop."""

    def __init__(self) -> None:
        self.site = Site()
        self.site.routes[b"/full"] = full
        self.server = Lone(self.site, self.site, self.site.application)
        self.server.loop = asyncio.get_running_loop()

    def connect(self) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.server), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def flood(self, count: int = MANY) -> list[Transport]:
        """So many callers come at once and are to be turned away."""
        clients = [self.connect() for _ in range(count)]
        for connection, _ in clients:
            connection.data_received(FULL)
        return [transport for _, transport in clients]


async def settled(place: Place) -> None:
    for _ in range(MANY):
        await asyncio.sleep(0)
    assert not place.server.crowd.gathers


def statuses(transports: list[Transport]) -> list[bytes]:
    return [transport.written[9:12] for transport in transports]


def test_everyone_in_a_flood_is_answered() -> None:
    async def run() -> None:
        place = Place()
        flood = place.flood()
        await settled(place)
        assert statuses(flood) == [b"429"] * MANY

    asyncio.run(run())


def test_the_loop_does_other_work_while_a_flood_is_turned_away() -> None:
    """What workers say is heard between a few refusals, not after all of them."""

    async def run() -> None:
        place = Place()
        flood = place.flood()
        seen: list[int] = []
        while place.server.crowd.gathers:
            seen.append(statuses(flood).count(b"429"))
            await asyncio.sleep(0)
        assert max(after - before for before, after in itertools.pairwise(seen)) <= LEAST

    asyncio.run(run())


def test_whoever_finds_a_place_in_a_flood_lets_more_be_turned_away_in_its_turn() -> None:
    async def run() -> None:
        crowd = Crowd()

        class Caller:
            def __init__(self, place: bool) -> None:
                self.place, self.read = place, False

            def data_received(self, data: bytes) -> None:
                self.read = True
                if not self.place:
                    crowd.refused()

        callers = [Caller(number % 2 == 0) for number in range(100 * LEAST)]
        crowd.refused()
        for caller in callers:
            crowd.put_down(caller, b"x")
        await asyncio.sleep(0)
        read = [caller for caller in callers if caller.read]
        placed = sum(caller.place for caller in read)
        assert callers[: len(read)] == read
        assert len(read) - placed == min(LEAST + SHARE * placed, len(callers) - placed)

    asyncio.run(run())


@given(st.lists(st.sampled_from([b"/full", b"/echo", b"/hold"]), max_size=14), st.integers(1, 7))
def test_a_connection_is_read_in_the_order_it_sent_whoever_is_turned_away(paths: list[bytes], step: int) -> None:
    async def run() -> None:
        place = Place()
        connection, transport = place.connect()
        place.flood(3)
        said = b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in paths)
        for start in range(0, len(said), 17 * step):
            if place.site.held:
                place.site.held.pop(0).respond(Answer(200, [], b"late"))
            connection.data_received(said[start : start + 17 * step])
        while place.server.crowd.gathers or place.site.held:
            if place.site.held:
                place.site.held.pop(0).respond(Answer(200, [], b"late"))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        answered = [part[:3] for part in transport.written.split(b"HTTP/1.1 ")[1:]]
        assert answered == [b"429" if path == b"/full" else b"200" for path in paths]

    asyncio.run(run())


def test_a_caller_that_has_left_is_not_served() -> None:
    async def run() -> None:
        place = Place()
        place.flood()
        connection, _ = place.connect()
        connection.data_received(post("/echo", b"x"))
        connection.connection_lost(None)
        await settled(place)
        assert not place.site.seen

    asyncio.run(run())


def test_what_a_connection_sent_meanwhile_goes_along_to_the_application() -> None:
    async def run() -> None:
        place = Place()
        place.flood(1)
        connection, transport = place.connect()
        connection.data_received(get("/app"))
        connection.data_received(get("/app/more"))
        await settled(place)
        assert transport.handed == get("/app") + get("/app/more")

    asyncio.run(run())


def test_a_connection_that_sends_much_is_read_at_once() -> None:
    """What waits unread is bounded, whatever is sent."""

    async def run() -> None:
        place = Place()
        place.flood()
        connection, transport = place.connect()
        request = post("/echo", b"x" * (MAX_BYTES + 1))
        for start in range(0, len(request), 60_000):
            connection.data_received(request[start : start + 60_000])
        await settled(place)
        assert transport.written.startswith(b"HTTP/1.1 200")
        assert len(place.site.seen[0].body) == MAX_BYTES + 1

    asyncio.run(run())


def test_a_server_that_stops_answers_whom_it_has_not_read_yet() -> None:
    async def run() -> None:
        place = Place()
        flood = place.flood()
        await place.server.drain(0)
        assert statuses(flood) == [b"429"] * MANY

    asyncio.run(run())


def test_over_real_connections_the_same() -> None:
    with serving() as served:
        served.site.routes[b"/full"] = full
        clients = [served.connect() for _ in range(MANY)]
        for client in clients:
            client.send(FULL)
        assert {client.ask(b"").status for client in clients} == {429}
        assert clients[0].ask(post("/echo", b"x")).body == b"x"
