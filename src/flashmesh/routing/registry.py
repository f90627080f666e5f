"""The manifest a process routes by: a file that is watched, and a State Manager that is asked when it gets old.

    file of the session or server ──┐
                                    ├─ the newer one ──▶ routes, remembered until it changes
    what was fetched (kept.py) ─────┘
            ▲
            └── one worker of the endpoint asks, in a thread, once the newer one is older than the TTL

A call never waits for that: what is old is served while it is asked for, and as long as nobody answers. Only where
there is nothing at all yet a call waits, for one query that all callers share. A function of this endpoint is never a
reason to ask.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final

import msgspec

from flashmesh.functions.errors import SettingsError
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.model import Manifest
from flashmesh.routing.addresses import Rules, is_loopback, read_address
from flashmesh.routing.kept import NEVER, Kept, KeptManifest, Stamp, stamp_of
from flashmesh.routing.route import Local, Own, Remote, Route, Unresolved, decide
from flashmesh.routing.state_manager import ATTEMPTS, StateManagerClient, StateManagerUnavailable

log = logging.getLogger(__name__)

TTL: Final = "FLASH_MANIFEST_TTL"
TTL_S: Final = 300.0
"""Lower: moved endpoints are found sooner without a failed call; each endpoint asks as much more often."""
RETRY_S: Final = 30.0
"""How long a State Manager that did not answer is left alone by an endpoint; at most the TTL."""
EAGER_S: Final = 5.0
"""Calls that found nobody at an address have the manifest fetched at once, but not more often than this; and they wait
no longer for another worker's query."""
_FIRST_WAIT_S: Final = 60.0
"""How long a call waits for another worker's query when nothing is known yet: as long as its own might take."""
_GLANCE_S: Final = 1.0
"""While another worker asks: how often to look whether it has an answer."""
_LONG_AGO: Final = float("-inf")
_ANYWHERE: Final = Rules(plain=(IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))
"""For reading where something came from, not for calling it."""


class ServiceRegistry:
    """Routes of one endpoint's calls. Safe to use from several threads.

    Before each decision the file's stamp is compared, which costs one `stat` (about 1 µs), and the moment at which the
    manifest gets old with the clock (0.05 µs).

    Args:
        path: the manifest that a session or this machine's server writes. Missing or half written, it leaves what was
            good before in force.
        own: this endpoint.
        state: whom to ask; None: the file is all there is.
        kept: where what was fetched is kept, for all workers of the endpoint; needed with `state`.
        served: ids of this endpoint's own functions, which need no manifest.
        ttl_s: how long a manifest counts as fresh, from when it was fetched or written by a server.
        clock: UTC seconds, comparable between processes. ticks: seconds that only go forward.
    """

    def __init__(
        self,
        path: Path,
        *,
        own: Own,
        rules: Rules | None = None,
        state: StateManagerClient | None = None,
        kept: Path | None = None,
        served: frozenset[str] = frozenset(),
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        if state is not None and kept is None:
            raise ValueError("With a State Manager a path is needed where its manifest is kept: kept=…")
        self._path = path
        self._own = own
        self._rules = rules or Rules()
        self._state = state
        self._kept = KeptManifest(kept, clock=clock) if kept is not None else None
        self._served = served
        self._ttl_s = ttl_s
        self._clock = clock
        self._ticks = ticks
        self._changing = threading.RLock()
        self._asking: threading.Thread | None = None
        self._look_at = _LONG_AGO  # in ticks: when to think about the manifest's age again
        self._seen: Stamp = NEVER
        self._seen_kept: Stamp = NEVER
        self._given: Kept | None = None
        self._fetched: Kept | None = None
        self._current: Kept | None = None
        self._routes: dict[FunctionId, Route] = {}
        self._failed = ""
        self._quiet_until = _LONG_AGO  # in ticks: nobody answered, so calls do not wait before

    # --- what callers ask ---

    @property
    def manifest(self) -> Manifest | None:
        """The manifest as of now; None when none was ever readable."""
        self._refresh()
        return self._current.manifest if self._current is not None else None

    @property
    def source(self) -> str:
        """Origin of the State Manager that wrote it; empty for a file of this machine's session or server."""
        return self._current.source if self._current is not None else ""

    @property
    def asks(self) -> bool:
        """Whether there is a State Manager: `look_again` and `load` may block."""
        return self._state is not None

    @property
    def must_ask(self) -> bool:
        """Whether no address is known yet and somebody could be asked: `load` first, which blocks."""
        if self._state is None:
            return False
        self._refresh()
        return not self._is_known and self._ticks() >= self._quiet_until

    def load(self) -> None:
        """Ask the State Manager if no address is known yet. Blocks; of many callers one asks. Never raises."""
        if self.must_ask:
            self._ask(ATTEMPTS, wait_s=_FIRST_WAIT_S, pause_s=RETRY_S)

    def route(self, function: FunctionId) -> Route:
        """Where a call of this function goes. Never blocks."""
        self._refresh()
        route = self._routes.get(function)
        if route is None:
            route = self._decide(function)
        return route

    def look_again(self) -> None:
        """An address did not answer: read the file whatever its time says, and ask the State Manager.

        Blocks for one query where there is a State Manager; it is asked at most every 5 s.
        """
        self._forget_stamps()
        if self._state is not None:
            self._ask(1, wait_s=EAGER_S, pause_s=EAGER_S)
        self._refresh()

    def look_again_soon(self) -> None:
        """The same without waiting for the answer."""
        self._forget_stamps()
        if self._state is not None and self._may_ask(EAGER_S):
            self._ask_aside(1, EAGER_S)

    def get_endpoint_for_function(self, name: str) -> str | None:
        """The address a call of `name` goes to, None when this endpoint runs it.

        Blocks for one query when nothing is known yet. Raises KeyError with the reason when there is no address.
        """
        if name not in self._served:
            self.load()
        match self.route(FunctionId(name)):
            case Local():
                return None
            case Remote(url=url):
                return url
            case Unresolved(reason=reason):
                raise KeyError(reason)

    @property
    def queries(self) -> int:
        """How often workers of this endpoint asked the State Manager, as far as the disk remembers."""
        return self._kept.asked().count if self._kept is not None else 0

    # --- deciding ---

    @property
    def _is_known(self) -> bool:
        """Whether there is a manifest with addresses, however old."""
        return self._current is not None and self._current.at != _LONG_AGO

    def _decide(self, function: FunctionId) -> Route:
        routes, current = self._routes, self._current
        if function in self._served:
            route: Route = Local(EndpointName(self._own.endpoint))
        else:
            route = decide(function, self._own, current.manifest if current is not None else None, self._rules)
            if isinstance(route, Unresolved) and not self._is_known and self._failed:
                return Unresolved(f"{route.reason} ({self._failed})")  # not remembered: soon there may be an answer
        if isinstance(route, Remote) and route.socket and route.address is not None:
            route = _reachable(route)
        if isinstance(route, Remote) and current is not None and _is_elsewhere(route, current.source):
            route = Unresolved(f"{route.url} is on the machine of {current.source}, and not on this one")
        routes[function] = route
        return route

    def _forget_stamps(self) -> None:
        with self._changing:
            self._seen = self._seen_kept = NEVER
            self._look_at = _LONG_AGO

    def _refresh(self) -> None:
        """Bring what is in memory up to date with the disk. The first lines are on the way of every call."""
        try:
            stamp = stamp_of(self._path)
        except OSError:
            stamp = self._seen
        if stamp != self._seen:
            self._read_given(stamp)
        if self._state is not None and self._ticks() >= self._look_at:
            self._consider()

    def _read_given(self, stamp: Stamp) -> None:
        with self._changing:
            try:
                manifest = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Any])
            except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
                if self._given is None:
                    log.debug("Function lookup failed", extra={"action": "manifest_unreadable", "reason": str(error)})
                return
            self._seen = stamp
            self._given = Kept(manifest, stamp[0] / 1e9 if self._is_deployed(manifest) else _LONG_AGO)
            self._choose()

    def _is_deployed(self, manifest: Mapping[str, Any]) -> bool:
        """Whether it says where endpoints are. A build's own copy says only what they are."""
        return self._state is None or "environment" in manifest or bool(manifest.get("resources_endpoints"))

    def _choose(self) -> None:
        known = [kept for kept in (self._given, self._fetched) if kept is not None]
        newest = max(known, key=lambda kept: kept.at, default=None)
        if newest is not self._current:
            self._current = newest
            self._routes = {}  # another one: a decision that is being made belongs to the manifest it began with

    # --- getting old ---

    def _consider(self) -> None:
        """Look at what is kept, and whether it is time to ask."""
        with self._changing:
            self._read_kept()
            current = self._current
            if current is None or not self._is_known:
                return  # `load` asks
            left = self._left_s(current)
            self._look_at = self._ticks() + (left if left > 0 else _GLANCE_S)
        if left <= 0 and self._may_ask(RETRY_S):
            self._ask_aside(ATTEMPTS, RETRY_S)

    def _read_kept(self) -> None:
        assert self._kept is not None
        stamp = self._kept.stamp()
        if stamp not in (self._seen_kept, NEVER):
            self._seen_kept = stamp
            fetched = self._kept.read()
            if fetched is not None:
                self._fetched = fetched
                self._choose()

    def _left_s(self, kept: Kept) -> float:
        """Seconds for which it is fresh. One from the future was written by a clock that was wrong: it is old."""
        age = self._clock() - kept.at
        return self._ttl_s - age if age >= -self._ttl_s else 0.0

    def _may_ask(self, pause_s: float) -> bool:
        """Whether the last time that any worker asked is long enough ago."""
        assert self._kept is not None
        return abs(self._clock() - self._kept.asked().at) >= min(pause_s, self._ttl_s)

    # --- asking ---

    def _ask_aside(self, attempts: int, pause_s: float) -> None:
        with self._changing:
            if self._asking is not None and self._asking.is_alive():
                return
            self._asking = threading.Thread(
                target=self._ask,
                args=(attempts,),
                kwargs={"wait_s": 0.0, "pause_s": pause_s},
                name="flash-manifest",
                daemon=True,  # it owns nothing: a worker that ends meanwhile leaves the next one to ask
            )
            self._asking.start()

    def _ask(self, attempts: int, *, wait_s: float, pause_s: float) -> None:
        """Ask, unless a worker of this endpoint has done so in the last `pause_s`; then its answer is taken."""
        assert self._state is not None and self._kept is not None
        turn = self._kept.take(wait_s=wait_s)
        if turn is None:
            return
        with turn:
            if self._may_ask(pause_s):
                turn.begin()
                log.debug("Asking the State Manager at %s for the manifest", self._state.origin)
                try:
                    fetched = self._kept.write(self._state.manifest(attempts=attempts), self._state.origin)
                except StateManagerUnavailable as error:
                    turn.failed()
                    self._unavailable(error)
                else:
                    self._take(fetched)
                return
        with self._changing:
            self._read_kept()
            if not self._is_known:
                self._quiet_until = self._ticks() + min(pause_s, self._ttl_s)

    def _take(self, fetched: Kept) -> None:
        assert self._kept is not None
        with self._changing:
            self._failed = ""
            self._fetched, self._seen_kept = fetched, self._kept.stamp()
            self._choose()
            self._look_at = self._ticks() + self._ttl_s

    def _unavailable(self, error: StateManagerUnavailable) -> None:
        known = "The manifest of before is used." if self._is_known else "Only functions that are here can run."
        log.warning("State Manager unavailable: %s %s", error, known)
        with self._changing:
            self._failed = str(error)
            self._quiet_until = self._ticks() + min(RETRY_S, self._ttl_s)


def ttl_of(text: str | None) -> float:
    """The seconds that FLASH_MANIFEST_TTL says; 300 when it is not set. Raises SettingsError."""
    if not text or not text.strip():
        return TTL_S
    try:
        ttl_s = float(text)
    except ValueError:
        ttl_s = -1.0
    if not 0 < ttl_s < 1e9:
        raise SettingsError(f"{TTL} is {text!r}; it must be a number of seconds above 0.")
    return ttl_s


def _is_elsewhere(route: Remote, source: str) -> bool:
    """Whether its loopback address is that of the machine which wrote the manifest, and here another program's."""
    if route.socket or route.address is None or not is_loopback(route.address) or not source:
        return False
    return not is_loopback(read_address(source, _ANYWHERE))


def _reachable(route: Remote) -> Remote:
    """The route without a socket that is not there: the manifest is of endpoints on another machine."""
    try:
        stamp_of(Path(route.socket))
    except OSError:
        return Remote(
            route.endpoint,
            "",
            route.url,
            route.address,
            "",
            route.queue,
            route.alone,
            route.http_method,
            route.http_path,
        )
    return route
