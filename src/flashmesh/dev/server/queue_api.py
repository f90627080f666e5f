"""The queue API of the dev server: run, run_sync, runsync, status and cancel of functions that workers run."""

import asyncio

from flashmesh.dev.server import answers
from flashmesh.dev.server.access import Receive, Scope, Send
from flashmesh.dev.server.calls import Waiting, Wishes, frame_of, good_body
from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.options import DevOptions
from flashmesh.dev.server.requests import EVENT_STREAM, header, read_body, wanted_media
from flashmesh.dev.server.results import status_body
from flashmesh.dev.server.route_book import CallMatch, ChoiceMatch, LookMatch, QueueRoute, Verb
from flashmesh.dev.server.selection import Selected, choose
from flashmesh.dev.server.streams import follow_stream, read_stream, stream_call
from flashmesh.gateway.access.pages import joined
from flashmesh.gateway.api.asgi import send_answer
from flashmesh.gateway.http import Answer


class QueueApi:
    """Answers the queue's routes through the session."""

    def __init__(self, door: SessionDoor, options: DevOptions) -> None:
        self._door = door
        self._options = options

    async def call(self, match: CallMatch, scope: Scope, receive: Receive, send: Send) -> None:
        """POST to one callable."""
        wishes = Wishes(joined(scope["headers"]), scope["query_string"])
        body = await self._body(wishes, scope, receive)
        await self._invoke(match.route, match.verb, wishes, body, receive, send)

    async def choose(self, choice: ChoiceMatch, scope: Scope, receive: Receive, send: Send) -> None:
        """POST to a file with several callables: the body says which. Raises MalformedRequest, FunctionNotFound."""
        wishes = Wishes(joined(scope["headers"]), scope["query_string"])
        body = await self._body(wishes, scope, receive)
        selected: Selected = choose(choice, body, wishes.content_type)
        wishes.content_type = selected.content_type
        await self._invoke(selected.route, choice.verb, wishes, selected.body, receive, send)

    async def _body(self, wishes: Wishes, scope: Scope, receive: Receive) -> bytes:
        options = self._options
        body = await read_body(scope, receive, limit_bytes=options.max_body_bytes, limit_s=options.body_limit_s)
        return good_body(body, wishes.content_type)

    async def _invoke(
        self, route: QueueRoute, verb: Verb, wishes: Wishes, body: bytes, receive: Receive, send: Send
    ) -> None:
        wait_s = wishes.wait_s(verb, self._options)
        frame = frame_of(route, verb, wishes, body)
        client = self._door.client or await self._door.get()
        invocation = client.invoke(frame)
        if wishes.streams(verb):
            await stream_call(invocation, receive, send, wishes.echoed())
            return
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def respond(answer: Answer) -> None:
            if not told.done():
                told.set_result(answer)

        Waiting(invocation, wishes, respond).start(wait_s)
        await send_answer(await told, send)

    async def look(self, match: LookMatch, scope: Scope, receive: Receive, send: Send) -> None:
        """GET status, cancel or stream of one execution. Raises ExecutionNotFound."""
        client = self._door.client or await self._door.get()
        if match.verb == "stream" and wanted_media(header(scope, b"accept")) == EVENT_STREAM:
            await follow_stream(client, match.execution, receive, send)
            return
        if match.verb == "stream":
            body = await read_stream(client, match.execution)
        else:
            if match.verb == "cancel":
                await client.query("cancel", id=match.execution)
            body = status_body(await client.query("execution", id=match.execution, payload=match.verb == "status"))
        await answers.send_bytes(send, 200, [answers.JSON_TYPE, (b"x-execution-id", match.execution.encode())], body)
