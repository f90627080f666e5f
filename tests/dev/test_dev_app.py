import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dev_server_client import Answer, DevClient, run, serving
from dev_session_fake import FakeCall, echo

from flashmesh.dev.server.app import DevServer
from flashmesh.functions.errors import (
    Cancelled,
    EnvironmentFailed,
    ImportFailed,
    QueueFull,
    TimedOut,
    ValidationError,
    WorkerLost,
)

UUID_LENGTH = 36


def one_function(server: DevServer) -> None:
    server.queue("/gpu_worker", "gpu_worker.process", resource="gpu_worker", file="gpu_worker.py", line=7)


def several(server: DevServer) -> None:
    server.queue("/counter/inc", "counter.Counter.inc", resource="counter", file="counter.py")
    server.queue("/counter/total", "counter.Counter.total", resource="counter", file="counter.py")


def ask(method: str, url: str, body: Any = None, *, behaviour: Any = echo, **more: Any) -> Answer:
    """One request to a project with one function."""

    async def asking() -> Answer:
        async with serving(one_function, {"gpu_worker.process": behaviour}) as client:
            return await client.send(method, url, body, **more)

    return run(asking())


def failing(error: BaseException, **more: Any) -> Any:
    async def behaviour(call: FakeCall) -> None:
        call.fail(error, **more)

    return behaviour


async def never(call: FakeCall) -> None:
    call.start()
    await call.cancelled.wait()
    call.fail(Cancelled())


async def not_yet(call: FakeCall) -> None:
    await call.cancelled.wait()
    call.fail(Cancelled(), ran=False)


@pytest.mark.parametrize("verb", ["run_sync", "runsync", "run"])
def test_the_three_verbs_answer_completed_with_the_output(verb: str) -> None:
    answer = ask("POST", f"/gpu_worker/{verb}", {"input": {"key": "värde"}})
    assert answer.status == 200
    assert len(answer.json.pop("id")) == UUID_LENGTH
    assert answer.json["status"] == "COMPLETED"
    assert answer.json["output"] == {"key": "värde"}


def test_every_answer_says_where_its_time_went() -> None:
    answer = ask("POST", "/gpu_worker/run_sync", {"input": 1})
    assert answer.headers["server-timing"] == "queue;dur=0.250, cold;dur=0.000, run;dur=1.500"
    assert answer.headers["x-cold-start"] == "false"
    assert answer.headers["x-execution-id"] == answer.json["id"]


def test_the_workers_bytes_are_spliced_and_not_written_again() -> None:
    async def spaced(call: FakeCall) -> None:
        call.succeed(b'{"a" : 1.0e2}')

    answer = ask("POST", "/gpu_worker/run_sync", {}, behaviour=spaced)
    assert b'"output":{"a" : 1.0e2}}' in answer.body


def test_the_session_gets_the_clients_bytes_as_they_came() -> None:
    body = b' {"input" : {"x": 1e2}} '

    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": echo}) as client:
            headers = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "Idempotency-Key": "once"}
            answer = await client.post("/gpu_worker/run_sync", body, headers=headers)
            return answer, client.session.seen[0]

    answer, frame = run(asking())
    assert frame.payload == body
    assert frame.function == "gpu_worker.process"
    assert frame.meta["idempotency_key"] == "once"
    assert frame.meta["trace"] == answer.headers["traceparent"]
    assert frame.meta["mode"] == "sync"


def test_run_answers_with_the_id_when_the_function_takes_longer_than_the_short_wait() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": never}, short_wait_s=0.02) as client:
            answer = await client.post("/gpu_worker/run", {})
            status = await client.get(f"/gpu_worker/status/{answer.json['id']}")
            return answer, status, client.session.seen[0].meta["mode"]

    answer, status, mode = run(asking())
    assert answer.status == 200
    assert answer.json["status"] == "IN_PROGRESS"
    assert status.json == answer.json
    assert mode == "async"


def test_a_call_that_waits_for_a_worker_is_in_queue() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": not_yet}, short_wait_s=0.02) as client:
            return (await client.post("/gpu_worker/run", {})).json["status"]

    assert run(asking()) == "IN_QUEUE"


def test_only_the_wait_of_run_sync_ends_and_cancel_frees_the_worker() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": never}) as client:
            answer = await client.post("/gpu_worker/run_sync", {}, headers={"X-Timeout-Ms": "30"})
            identity = answer.json["id"]
            cancelled = await client.post(f"/gpu_worker/cancel/{identity}")
            return answer, cancelled, client.session.calls[identity].cancelled.is_set()

    answer, cancelled, was_cancelled = run(asking())
    assert (answer.status, answer.json["status"]) == (200, "IN_PROGRESS")
    assert cancelled.json["status"] == "CANCELLED"
    assert was_cancelled


@pytest.mark.parametrize("query", ["wait=5", "wait=300001", "wait=soon", "wait=-1"])
def test_a_wait_out_of_range_is_an_error_that_names_it(query: str) -> None:
    answer = ask("POST", f"/gpu_worker/run_sync?{query}", {})
    assert answer.status == 422
    assert answer.json["field"] == "wait"
    assert "1000" in answer.json["error"]


def test_status_of_a_finished_call_carries_its_output() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": echo}) as client:
            made = await client.post("/gpu_worker/run_sync", {"input": [1, 2]})
            return await client.get(f"/gpu_worker/status/{made.json['id']}")

    status = run(asking())
    assert status.json["status"] == "COMPLETED"
    assert status.json["output"] == [1, 2]
    assert status.json["executionTime"] == 2


def test_an_unknown_id_is_404() -> None:
    answer = ask("GET", "/gpu_worker/status/nope")
    assert answer.status == 404
    assert answer.json["code"] == "EXECUTION_NOT_FOUND"


def test_a_user_exception_is_500_with_type_message_and_traceback() -> None:
    def broken() -> None:
        raise ZeroDivisionError("division by zero")

    async def behaviour(call: FakeCall) -> None:
        try:
            broken()
        except ZeroDivisionError as error:
            call.fail(error)

    answer = ask("POST", "/gpu_worker/run_sync", {}, behaviour=behaviour)
    assert answer.status == 500
    assert answer.json["status"] == "FAILED"
    assert answer.json["error"] == "division by zero"
    assert answer.json["error_type"] == "ZeroDivisionError"
    assert "in broken" in answer.json["traceback"]
    assert answer.json["id"] == answer.headers["x-execution-id"]


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (ValidationError("`n` is missing.", field="n"), 422, "FAILED"),
        (ImportFailed("gpu_worker.py, line 3: no module named 'torchh'"), 503, "FAILED"),
        (EnvironmentFailed("uv: no such package"), 503, "FAILED"),
        (TimedOut(), 504, "TIMED_OUT"),
        (Cancelled(), 409, "CANCELLED"),
        (WorkerLost(), 500, "FAILED"),
        (QueueFull(retry_after=2.5), 429, "FAILED"),
    ],
)
def test_each_failure_has_its_status(error: Exception, status: int, word: str) -> None:
    answer = ask("POST", "/gpu_worker/run_sync", {}, behaviour=failing(error, ran=False))
    assert answer.status == status
    assert answer.json["status"] == word
    assert answer.json["error"] == str(error)


def test_a_failed_import_names_file_line_and_reason() -> None:
    error = ImportFailed(
        "api/x.py:11: ModuleNotFoundError: No module named 'y'; install it. Correct the file and save it"
    )
    answer = ask("POST", "/gpu_worker/run", {}, behaviour=failing(error, ran=False))
    assert (answer.json["file"], answer.json["line"]) == ("api/x.py", 11)
    assert answer.json["reason"] == "ModuleNotFoundError: No module named 'y'; install it"


def test_a_validation_error_names_the_field() -> None:
    answer = ask("POST", "/gpu_worker/run", {}, behaviour=failing(ValidationError("bad", field="items[2].price")))
    assert answer.json["field"] == "items[2].price"


def test_a_full_queue_says_when_to_come_back() -> None:
    answer = ask("POST", "/gpu_worker/run", {}, behaviour=failing(QueueFull(retry_after=2.5)))
    assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("body", [b"{", b"nonsense", b'{"input": {"a": }}', b"\xff\xfe"])
def test_malformed_json_is_400_and_nothing_is_run(body: bytes) -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": echo}) as client:
            return await client.post("/gpu_worker/run_sync", body), client.session.seen

    answer, seen = run(asking())
    assert answer.status == 400
    assert "JSON" in answer.json["error"]
    assert seen == []


def test_nan_in_the_body_is_422() -> None:
    assert ask("POST", "/gpu_worker/run_sync", b'{"input": {"x": NaN}}').status == 422


def test_an_empty_body_is_an_empty_input() -> None:
    assert ask("POST", "/gpu_worker/run_sync").json["output"] == {}


def test_curls_default_content_type_is_read_as_json() -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert ask("POST", "/gpu_worker/run_sync", {"input": 3}, headers=headers).json["output"] == 3


def test_other_media_are_415() -> None:
    assert ask("POST", "/gpu_worker/run_sync", b"<a/>", headers={"content-type": "application/xml"}).status == 415


def test_bytes_go_in_and_out_as_they_are() -> None:
    async def mirrored(call: FakeCall) -> None:
        assert call.frame.content_type == call.frame.accept == "application/octet-stream"
        call.succeed(call.frame.payload[::-1], content_type="application/octet-stream")

    headers = {"content-type": "application/octet-stream", "accept": "application/octet-stream"}
    answer = ask("POST", "/gpu_worker/run_sync", b"\x00\x01abc", behaviour=mirrored, headers=headers)
    assert answer.body == b"cba\x01\x00"
    assert answer.headers["content-type"] == "application/octet-stream"


def test_messagepack_results_are_passed_on_whole() -> None:
    async def packed(call: FakeCall) -> None:
        call.succeed(msgspec.msgpack.encode({"a": b"raw"}), content_type="application/x-msgpack")

    answer = ask("POST", "/gpu_worker/run_sync", {}, behaviour=packed, headers={"accept": "application/x-msgpack"})
    assert msgspec.msgpack.decode(answer.body) == {"a": b"raw"}


def test_a_body_over_the_limit_is_413_naming_the_limit() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": echo}, max_body_bytes=10) as client:
            announced = await client.post("/gpu_worker/run_sync", b'"' + b"x" * 20 + b'"')
            lied = await client.post("/gpu_worker/run_sync", b'"' + b"x" * 20 + b'"', headers={"content-length": "5"})
            return announced, lied

    for answer in run(asking()):
        assert answer.status == 413
        assert "10 bytes" in answer.json["error"]
        assert "FLASH_MAX_BODY_BYTES" in answer.json["error"]


def test_a_body_that_does_not_arrive_is_408() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": echo}, body_limit_s=0.02) as client:
            scope_sent: list[Any] = []

            async def receive() -> Any:
                await asyncio.sleep(30)

            async def send(message: Any) -> None:
                scope_sent.append(message)

            headers = [(b"host", b"localhost"), (b"content-length", b"5")]
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/gpu_worker/run",
                "query_string": b"",
                "headers": headers,
            }
            await client.app(scope, receive, send)
            return scope_sent[0]["status"]

    assert run(asking()) == 408


def test_an_unknown_route_is_404_with_the_nearest() -> None:
    answer = ask("POST", "/gpu_workr/run_sync", {})
    assert answer.status == 404
    assert answer.json["nearest"] == "POST /gpu_worker/run_sync"
    assert "/gpu_worker/run_sync" in answer.json["error"]


def test_a_wrong_method_is_405_with_what_is_allowed() -> None:
    answer = ask("GET", "/gpu_worker/run_sync")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST, OPTIONS"


def test_options_and_head_are_answered() -> None:
    assert ask("OPTIONS", "/gpu_worker/run_sync").headers["allow"] == "POST, OPTIONS"
    assert ask("HEAD", "/").status == 200
    assert ask("OPTIONS", "/docs").status == 204


def test_the_server_says_who_it_is_and_that_it_is_up() -> None:
    assert ask("GET", "/").json == {"message": "Flash Dev Server", "docs": "/docs"}
    assert ask("GET", "/ping").json == {"status": "healthy"}
    assert ask("GET", "/healthz").status == 200


def test_without_a_function_name_a_file_with_several_lists_them() -> None:
    async def asking() -> Any:
        async with serving(several, {"counter.Counter.inc": echo}) as client:
            nothing = await client.post("/counter/run_sync", {"input": {"by": 1}})
            unknown = await client.post("/counter/dec/run_sync", {"input": {"by": 1}})
            wrong = await client.post("/counter/run_sync", {"input": {"method": "dec"}})
            return nothing, unknown, wrong

    nothing, unknown, wrong = run(asking())
    assert nothing.status == 400
    assert "inc, total" in nothing.json["error"]
    assert unknown.status == wrong.status == 404
    assert "inc, total" in unknown.json["error"]


@pytest.mark.parametrize("body", [{"method": "inc", "by": 2}, {"function_name": "Counter.inc", "by": 2}])
def test_a_method_or_function_name_selects_and_is_taken_out(body: dict[str, Any]) -> None:
    async def asking() -> Any:
        async with serving(several, {"counter.Counter.inc": echo}) as client:
            return (await client.post("/counter/runsync", {"input": body})).json["output"]

    assert run(asking()) == {"by": 2}


def test_flashs_function_request_becomes_arguments() -> None:
    request = {"function_name": "inc", "args": [1], "kwargs": {"by": 2}, "serialization_format": "json"}

    async def asking() -> Any:
        async with serving(several, {"counter.Counter.inc": seen}) as client:
            await client.post("/counter/runsync", {"input": request})
            return client.session.seen[0]

    async def seen(call: FakeCall) -> None:
        call.succeed(b"null")

    frame = run(asking())
    assert frame.content_type == "application/x-msgpack"
    assert msgspec.msgpack.decode(frame.payload)[:2] == [[1], {"by": 2}]


def test_source_in_a_request_is_never_run() -> None:
    request = {"function_name": "inc", "function_code": "def inc(): ...", "args": []}

    async def asking() -> Any:
        async with serving(several) as client:
            return await client.post("/counter/runsync", {"input": request}), client.session.seen

    answer, seen = run(asking())
    assert answer.status == 400
    assert seen == []


def test_a_file_with_a_fault_answers_503_with_place_and_reason_and_others_work() -> None:
    def declare(server: DevServer) -> None:
        one_function(server)
        server.unavailable("/broken", file="broken.py", line=3, reason="SyntaxError: invalid syntax")

    async def asking() -> Any:
        async with serving(declare, {"gpu_worker.process": echo}) as client:
            return await client.post("/broken/run_sync", {}), await client.post("/gpu_worker/run_sync", {"input": 1})

    broken, fine = run(asking())
    assert broken.status == 503
    assert (broken.json["file"], broken.json["line"]) == ("broken.py", 3)
    assert broken.json["reason"] == "SyntaxError: invalid syntax"
    assert "broken.py, line 3" in broken.json["error"]
    assert fine.status == 200


def test_without_a_session_the_answer_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmesh.dev.server.door._PATIENCE_S", 0.05)

    async def asking() -> Any:
        server = DevServer(tmp_path, {"FLASH_SESSION_LINK": str(tmp_path / "no.sock")})
        one_function(server)
        client = DevClient(server.app, None)  # type: ignore[arg-type]
        return await client.post("/gpu_worker/run_sync", {}), await client.get("/readyz")

    answer, ready = run(asking())
    assert answer.status == 503
    assert "flash run" in answer.json["error"]
    assert ready.status == 503


def test_a_session_that_dies_in_the_middle_of_a_call_is_a_clear_error() -> None:
    async def hang_up(call: FakeCall) -> None:
        call.link.abort()

    answer = ask("POST", "/gpu_worker/run_sync", {}, behaviour=hang_up)
    assert answer.status == 503
    assert answer.json["code"] == "LINK_LOST"


def test_a_client_that_goes_away_does_not_end_a_sync_call() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": never}) as client:
            gone = asyncio.Event()
            headers = {"X-Timeout-Ms": "50"}
            task = asyncio.ensure_future(client.post("/gpu_worker/run_sync", {}, gone=gone, headers=headers))
            gone.set()
            await task
            return [call.cancelled.is_set() for call in client.session.calls.values()]

    assert run(asking()) == [False]


# Streams


async def three(call: FakeCall) -> None:
    call.start()
    for number in range(3):
        call.item({"n": number})
    call.succeed(b"", items=3)


EVENTS = {"accept": "text/event-stream"}


def events(body: bytes) -> list[tuple[str, Any]]:
    found = []
    for block in body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


def test_a_generator_streams_as_events_and_ends_with_its_status() -> None:
    answer = ask("POST", "/gpu_worker/run_sync", {}, behaviour=three, headers=EVENTS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.body)
    assert [data for _, data in found[:3]] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert found[3][0] == "end"
    assert found[3][1]["status"] == "COMPLETED"


def test_items_arrive_while_the_generator_runs() -> None:
    release = asyncio.Event()

    async def slowly(call: FakeCall) -> None:
        call.start()
        call.item(1)
        await release.wait()
        call.succeed(b"", items=1)

    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": slowly}) as client:
            answer = Answer()
            task = asyncio.ensure_future(client.post("/gpu_worker/run_sync", {}, headers=EVENTS, answer=answer))
            await answer.more.wait()
            early = bytes(answer.body)
            release.set()
            await task
            return early, answer.body

    early, whole = run(asking())
    assert events(early) == [("", 1)]
    assert len(events(whole)) == 2


def test_a_plain_function_streams_its_one_result() -> None:
    async def plain(call: FakeCall) -> None:
        call.start()
        call.succeed(b'"x"')

    assert events(ask("POST", "/gpu_worker/runsync", {}, behaviour=plain, headers=EVENTS).body)[0] == ("", "x")


def test_a_failure_before_the_body_has_its_own_status() -> None:
    behaviour = failing(ValidationError("`n` is missing.", field="n"), ran=False)
    answer = ask("POST", "/gpu_worker/run_sync", {}, behaviour=behaviour, headers=EVENTS)
    assert answer.status == 422


def test_a_failure_in_the_middle_is_the_last_event() -> None:
    async def breaks(call: FakeCall) -> None:
        call.start()
        call.item(1)
        call.fail(ValueError("no more"))

    found = events(ask("POST", "/gpu_worker/run_sync", {}, behaviour=breaks, headers=EVENTS).body)
    assert found[-1][0] == "error"
    assert found[-1][1]["error"] == "no more"


def test_a_stream_whose_client_goes_away_is_cancelled() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": never}) as client:
            gone = asyncio.Event()
            post = client.post("/gpu_worker/run_sync", {}, headers=EVENTS, gone=gone)
            task = asyncio.ensure_future(post)
            await client.session.called.wait()
            gone.set()
            await task
            return [call.cancelled.is_set() for call in client.session.calls.values()]

    assert run(asking()) == [True]


def test_stream_by_id_gives_each_item_once() -> None:
    async def asking() -> Any:
        async with serving(one_function, {"gpu_worker.process": three}) as client:
            identity = (await client.post("/gpu_worker/run", {})).json["id"]
            first = await client.get(f"/gpu_worker/stream/{identity}")
            second = await client.get(f"/gpu_worker/stream/{identity}")
            return first.json, second.json

    first, second = run(asking())
    assert first == {"status": "COMPLETED", "stream": [{"output": {"n": n}} for n in range(3)]}
    assert second == {"status": "COMPLETED", "stream": []}


def test_a_project_of_queue_functions_never_imports_fastapi() -> None:
    """FastAPI takes half a second; the first answer does not wait for it."""
    source = (
        "import sys, pathlib; from flashmesh.dev.server.app import DevServer; "
        "s = DevServer(pathlib.Path('.'), {}); s.queue('/f', 'f.f', resource='f', file='f.py'); s.app; "
        "sys.exit(bool({'fastapi', 'starlette', 'pydantic', 'flashmesh.dev.server.lb'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
