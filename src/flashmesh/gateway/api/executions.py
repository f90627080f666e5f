"""`/v1/executions…`: one, cancel, retry, and the list; as callbacks."""

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status
from flashmesh.functions.errors import ExecutionNotFound, FlashmeshError
from flashmesh.gateway.api.failures import InvalidRequest, failure
from flashmesh.gateway.api.functions import Enqueued
from flashmesh.gateway.api.records import execution_body, execution_fields
from flashmesh.gateway.api.words import FUNCTION_WORDS, dump
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.directory import ANYWHERE, Callee, Directory, Where
from flashmesh.gateway.http import JSON_TYPE, Answer, Request, Respond
from flashmesh.kit.ids import ExecutionId

PREFIX: Final = b"/v1/executions/"
MAX_LISTED: Final = 1000
DEFAULT_LISTED: Final = 100
_STATUS_OF: Final = {word: status for status, word in FUNCTION_WORDS.items()}
_FIELDS: Final = frozenset({"function", "status", "after", "limit", "app", "env"})


def execution_id(path: bytes, prefix: bytes = PREFIX, suffix: bytes = b"") -> ExecutionId:
    """The id in a path. Raises ExecutionNotFound for what cannot be one."""
    raw = path[len(prefix) : len(path) - len(suffix)]
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    if not raw or len(raw) > 200:
        raise ExecutionNotFound
    return ExecutionId(raw.decode("utf-8", "replace"))


def shown(execution: Execution) -> Answer:
    """The execution with its output."""
    try:
        body = execution_body(execution)
    except FlashmeshError as error:
        return failure(error, face="functions")
    return Answer(200, [JSON_TYPE, (b"x-execution-id", execution.id.encode())], body)


class ExecutionHandlers:
    """Handlers of the paths below `/v1/executions`."""

    def __init__(self, calls: Calls, directory: Directory) -> None:
        self._calls = calls
        self._directory = directory

    def get(self, request: Request, respond: Respond) -> None:
        """GET `/v1/executions/{id}`: 200 however it ended."""
        try:
            answer = shown(self._calls.dispatcher.execution(self._seen(request)))
        except FlashmeshError as error:
            answer = failure(error, face="functions")
        respond(answer)

    def cancel(self, request: Request, respond: Respond) -> None:
        """DELETE `/v1/executions/{id}`: answers when it has stopped, or with `running` when that takes long."""

        def told(execution: Execution) -> None:
            respond(_brief(execution))

        self._or_refuse(lambda: self._calls.cancel(self._seen(request), told), respond)

    def retry(self, request: Request, respond: Respond) -> None:
        """POST `/v1/executions/{id}:retry`: a new execution, 202."""

        def run() -> None:
            found = self._seen(request, b":retry")
            self._calls.retry(found, Enqueued(respond, "", b""))

        self._or_refuse(run, respond)

    def list(self, request: Request, respond: Respond) -> None:
        """GET `/v1/executions?function=&status=&after=&limit=`: newest first; `next` is the next page's `after`."""
        self._or_refuse(lambda: respond(self._list(request)), respond)

    def _or_refuse(self, action: Callable[[], None], respond: Respond) -> None:
        try:
            action()
        except FlashmeshError as error:
            respond(failure(error, face="functions"))

    def _seen(self, request: Request, suffix: bytes = b"") -> ExecutionId:
        """The execution a request is about. Raises ExecutionNotFound also for another app's, where a token counts for
        one only."""
        found = execution_id(request.path, suffix=suffix)
        if self._directory.scoped and request.principal:
            where = self._directory.where(request)
            if not self._directory.visible(self._calls.dispatcher.execution(found).endpoint, where):
                raise ExecutionNotFound
        return found

    def _list(self, request: Request) -> Answer:
        wanted = query_fields(request.query, _FIELDS)
        where = self._directory.where(request)
        status = wanted.get("status")
        if status is not None and status not in _STATUS_OF:
            raise InvalidRequest(f"`status` is one of {', '.join(_STATUS_OF)}, not {status!r}.", field="status")
        limit = whole_number(wanted.get("limit"), range(1, MAX_LISTED + 1), "limit", DEFAULT_LISTED)
        function = wanted.get("function")
        after = wanted.get("after")
        callee = None if function is None else self._directory.function(function, where)
        found = self._calls.dispatcher.store.recent(
            function=None if callee is None else callee.function,
            status=None if status is None else Status(_STATUS_OF[status]),
            limit=limit,
            after=None if after is None else ExecutionId(after),
        )
        meant = [execution for execution in found if self._is_meant(execution, callee, where)]
        body = {
            "executions": [execution_fields(execution) for execution in meant],
            "next": found[-1].id if len(found) == limit else None,
        }
        return Answer(200, [JSON_TYPE], dump(body))

    def _is_meant(self, execution: Execution, callee: Callee | None, where: Where) -> bool:
        if callee is not None and callee.named:
            return execution.endpoint == callee.endpoint
        return where == ANYWHERE or self._directory.within(execution.endpoint, where)


def _brief(execution: Execution) -> Answer:
    return Answer(200, [JSON_TYPE, (b"x-execution-id", execution.id.encode())], dump(execution_fields(execution)))


def query_fields(query: bytes, known: frozenset[str]) -> dict[str, str]:
    """A query string's parameters. Raises InvalidRequest for one that is not known, or comes twice."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=50, errors="strict")
    except ValueError as error:
        raise InvalidRequest("The query cannot be read. Send name=value pairs.", field="query") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise InvalidRequest(
                f"`{name[:40]}` is no parameter here. Known: {', '.join(sorted(known))}.", field=name[:40]
            )
        if name in fields:
            raise InvalidRequest(f"`{name}` is given twice. Send it once.", field=name)
        if not value:
            raise InvalidRequest(f"`{name}` is empty. Leave it out.", field=name)
        fields[name] = value
    return fields


def whole_number(text: str | None, allowed: range, name: str, default: int) -> int:
    """Raises InvalidRequest."""
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 12 and int(text) in allowed:
        return int(text)
    raise InvalidRequest(
        f"`{name}` is {text[:40]!r}; it must be a number from {allowed[0]} to {allowed[-1]}.", field=name
    )
