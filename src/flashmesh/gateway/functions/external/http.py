"""A function behind an HTTP address (`endpointUrl`): one far end with `concurrency` slots, always there."""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial

from flashmesh.functions.errors import EndpointUnreachable, FlashmeshError, ValidationError, WorkerLost
from flashmesh.gateway.functions.external.addresses import PlainHttp, Target
from flashmesh.gateway.functions.external.answers import Later, Output, of_http
from flashmesh.gateway.functions.external.client import MAX_ANSWER_BYTES, Client, Exchange
from flashmesh.gateway.functions.external.far_end import FarEnd, Flight
from flashmesh.gateway.functions.external.requests import Head, request_body
from flashmesh.gateway.functions.spec import External
from flashmesh.kit.ids import BuildId, EndpointName, WorkerId
from flashmesh.queueing.dispatcher import Dispatcher


class HttpCarrier:
    """Carries calls to one address. Also how a command that listens on a port is spoken to.

    Args:
        on_broken: told instead of the far end when there was no connection, or it ended without an answer; it then
            fails the flight.
    """

    def __init__(
        self,
        target: Target,
        *,
        loop: asyncio.AbstractEventLoop,
        plain_http: PlainHttp,
        callback_url: str | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        on_broken: Callable[[FarEnd, Flight, FlashmeshError, bool], None] | None = None,
    ) -> None:
        self.client = Client(target, loop=loop, plain_http=plain_http, tls=tls, max_answer_bytes=max_answer_bytes)
        self._loop = loop
        self._head = Head(target, callback_url=callback_url)
        self._on_broken = on_broken

    def begin(self, far_end: FarEnd, flight: Flight) -> bool:
        try:
            media, body = request_body(flight.invoke)
        except ValidationError as error:
            self._loop.call_soon(partial(far_end.fail, flight, error, ran=False))
            return True
        head = self._head.of(flight.invoke, media, len(body))

        def done(status: int, headers: dict[str, str], answer: bytes) -> None:
            flight.handle = None
            meaning = of_http(status, headers, answer)
            if isinstance(meaning, Output):
                far_end.succeed(flight, meaning.content_type, meaning.payload)
            elif isinstance(meaning, Later):
                far_end.detach(flight)
            else:
                far_end.fail(flight, meaning)

        def broken(error: FlashmeshError, ran: bool) -> None:
            flight.handle = None
            if self._on_broken is not None and isinstance(error, WorkerLost | EndpointUnreachable):
                self._on_broken(far_end, flight, error, ran)
            else:
                far_end.fail(flight, error, ran=ran)

        flight.handle = self.client.send(head + body, done, broken)
        return True

    def stop(self, far_end: FarEnd, flight: Flight) -> None:
        if isinstance(flight.handle, Exchange):
            flight.handle.cancel()

    def leave(self, far_end: FarEnd) -> None:
        self.client.close()
        far_end.gone(0, "")


class HttpFunction:
    """What the registry holds of a function with an `endpointUrl`."""

    def __init__(
        self,
        external: External,
        build: BuildId,
        *,
        dispatcher: Dispatcher,
        loop: asyncio.AbstractEventLoop,
        plain_http: PlainHttp,
        callback_url: str | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        assert external.target is not None
        carrier = HttpCarrier(
            external.target,
            loop=loop,
            plain_http=plain_http,
            callback_url=callback_url,
            max_answer_bytes=max_answer_bytes,
            tls=tls,
        )
        name = EndpointName(external.name)
        self._far_end = FarEnd(
            dispatcher=dispatcher,
            loop=loop,
            endpoint=name,
            build=build,
            id=WorkerId(f"{name}/http-{build}"),
            slots=external.spec.concurrency,
            carrier=carrier,
        )
        self._client = carrier.client

    def start(self) -> None:
        """Offer the slots. Once the plan has been declared."""
        self._far_end.ready()

    def scale(self, workers: int) -> None:
        """Nothing to do: how many serve behind an address is not ours."""

    def amend(self, external: External) -> None:
        """Its spec was changed in what may be changed."""
        self._far_end.resize(external.spec.concurrency)

    def far_ends(self) -> tuple[FarEnd, ...]:
        return (self._far_end,)

    def retire(self) -> None:
        """Take nothing more; what is in flight finishes."""
        self._far_end.drain("removed")

    async def close(self) -> None:
        """End at once."""
        self._client.close()
