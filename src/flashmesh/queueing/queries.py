"""The questions every session answers: what runs, what came of a call, what was printed.

```
status      {}                                        → {"endpoints": {name: {…}}}
execution   {id, payload?, wait?}                     → the record; `wait` seconds at most until it has ended
await       {id, wait?}                               → the same with its payload, waiting 10 s if not told otherwise
executions  {function?, status?, limit?}              → {"executions": [record, …]}, newest first
cancel      {id}                                      → the record
stream      {id, after?, wait?, limit?}               → {"status", "items": [bytes], "next", "content_type", "error"?}
follow_logs {function?, execution?, endpoint?, tail?, follow?} → {"lines": [line, …]} per answer
```
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from flashmesh.executions.items import MAX_UNREAD_ITEMS
from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status
from flashmesh.functions.errors import ResultEvicted, ValidationError
from flashmesh.kit.ids import ExecutionId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.logbook import LogBook, LogFilter, line_body
from flashmesh.queueing.ports import Answers, QueryHandler
from flashmesh.queueing.settlement import output
from flashmesh.wire.failures import unpack
from flashmesh.wire.frames import Log

LONGEST_WAIT_S: Final = 300.0
DEFAULT_AWAIT_S: Final = 10.0
DEFAULT_TAIL: Final = 100
STREAM_BYTES: Final = 4 * 1024 * 1024
"""Items of one `stream` answer stop after this many bytes."""


def built_in(dispatcher: Dispatcher, logbook: LogBook) -> dict[str, QueryHandler]:
    """The handlers by name."""
    questions = _Questions(dispatcher, logbook)
    return {
        "status": questions.status,
        "execution": questions.execution,
        "await": questions.await_end,
        "executions": questions.executions,
        "cancel": questions.cancel,
        "stream": questions.stream,
        "follow_logs": questions.follow_logs,
    }


class _Questions:
    def __init__(self, dispatcher: Dispatcher, logbook: LogBook) -> None:
        self._dispatcher = dispatcher
        self._logbook = logbook

    async def status(self, arguments: dict[str, Any], answers: Answers) -> dict[str, Any]:
        return {"endpoints": {endpoint["name"]: endpoint for endpoint in self._dispatcher.status()["endpoints"]}}

    async def execution(self, arguments: dict[str, Any], answers: Answers) -> dict[str, Any]:
        execution = self._dispatcher.execution(_id(arguments))
        wait = _seconds(arguments, "wait", 0.0)
        if wait and not execution.ended:
            await self._until(execution, lambda: execution.ended, wait)
        return record_body(execution, payload=bool(arguments.get("payload")))

    async def await_end(self, arguments: dict[str, Any], answers: Answers) -> dict[str, Any]:
        return await self.execution({"wait": DEFAULT_AWAIT_S, **arguments, "payload": True}, answers)

    async def executions(self, arguments: dict[str, Any], answers: Answers) -> dict[str, Any]:
        status = arguments.get("status")
        if status is not None and str(status).upper() not in Status.__members__:
            raise ValidationError(f"status is one of {', '.join(Status.__members__)}, not {status!r}", field="status")
        found = self._dispatcher.store.recent(
            function=arguments.get("function"),
            status=None if status is None else Status(str(status).upper()),
            limit=min(1000, max(0, int(arguments.get("limit") or 100))),
        )
        return {"executions": [record_body(execution) for execution in found]}

    async def cancel(self, arguments: dict[str, Any], answers: Answers) -> dict[str, Any]:
        return record_body(self._dispatcher.cancel(_id(arguments)))

    async def stream(self, arguments: dict[str, Any], answers: Answers) -> dict[str, Any]:
        """Each item once: without `after`, from where the last reader of this execution stopped."""
        execution = self._dispatcher.execution(_id(arguments))
        after = arguments.get("after")
        position = None if after is None else int(after)
        wait = _seconds(arguments, "wait", 0.0)
        items = execution.items

        def something_new() -> bool:
            buffer = execution.items
            return execution.ended or (
                buffer is not None and buffer.total > (buffer.cursor if after is None else after)
            )

        if wait and not something_new():
            await self._until(execution, something_new, wait)
        items = execution.items
        taken: list[bytes] = []
        following = position or 0
        if items is not None:
            limit = min(MAX_UNREAD_ITEMS, int(arguments.get("limit") or MAX_UNREAD_ITEMS))
            taken, following = items.take(position, limit, STREAM_BYTES)
            self._dispatcher.items_taken(execution.id)
        body = record_body(execution)
        drained = items is None or following >= items.total
        body.update(items=taken, next=following, done=execution.ended and drained)
        return body

    async def follow_logs(self, arguments: dict[str, Any], answers: Answers) -> None:
        wanted = LogFilter(
            function=str(arguments.get("function") or ""),
            execution=str(arguments.get("execution") or ""),
            endpoint=str(arguments.get("endpoint") or ""),
        )
        tail = arguments.get("tail")
        kept = self._logbook.tail(wanted, DEFAULT_TAIL if tail is None else int(tail))
        for start in range(0, len(kept), DEFAULT_TAIL):
            answers({"lines": [line_body(line) for line in kept[start : start + DEFAULT_TAIL]]})
        if not arguments.get("follow", True):
            return
        dropped = 0

        def pass_on(line: Log) -> None:
            nonlocal dropped
            if answers.behind:
                dropped += 1
                return
            answers({"lines": [line_body(line, dropped=dropped)]})
            dropped = 0

        stop = self._logbook.follow(wanted, pass_on)
        try:
            await asyncio.get_running_loop().create_future()  # until the client closes the question
        finally:
            stop()

    async def _until(self, execution: Execution, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition` or until the time is up, whichever is first; never raises for either."""
        changed = asyncio.Event()
        unwatch = self._dispatcher.watch(execution.id, changed.set)
        if unwatch is None:
            return
        try:
            async with asyncio.timeout(min(seconds, LONGEST_WAIT_S)):
                while not condition():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            unwatch()


def record_body(execution: Execution, *, payload: bool = False) -> dict[str, Any]:
    """An execution as plain values. Times are UTC seconds.

    `payload`: the result's bytes with their `content_type`; for a failure the packed ErrorInfo, from which the
    exception can be restored. Raises ResultEvicted when it was asked for and is gone.
    """
    body: dict[str, Any] = {
        "id": execution.id,
        "function": execution.function,
        "endpoint": execution.endpoint,
        "status": str(execution.status),
        "kind": execution.kind,
        "created_at": execution.created_at,
        "started_at": execution.started_at,
        "ended_at": execution.ended_at,
        "attempt": execution.attempt,
        "worker": execution.worker,
        "build": execution.build,
        "run_ms": execution.run_us / 1000,
        "queue_ms": execution.queue_us / 1000,
        "cold_ms": execution.cold_us / 1000,
        "content_type": execution.result_type or execution.accept,
        "items": -1 if execution.items is None else execution.items.total,
    }
    if execution.error_code:
        body["error"] = _error(execution)
    if payload and execution.ended:
        if execution.result_evicted:
            raise ResultEvicted
        body["payload"] = output(execution)[0] if execution.status is Status.SUCCESS else execution.result
    return body


def _error(execution: Execution) -> dict[str, Any]:
    error: dict[str, Any] = {"code": execution.error_code, "message": execution.error_message}
    if execution.result:
        info = unpack(execution.result)
        error.update(type=info.type, traceback=info.traceback, field=info.field)
    return error


def _id(arguments: dict[str, Any]) -> ExecutionId:
    value = arguments.get("id")
    if not isinstance(value, str) or not value:
        raise ValidationError("`id` is missing: which execution?", field="id")
    return ExecutionId(value)


def _seconds(arguments: dict[str, Any], name: str, default: float) -> float:
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValidationError(f"`{name}` is a number of seconds from 0, not {value!r}", field=name)
    return min(float(value), LONGEST_WAIT_S)
