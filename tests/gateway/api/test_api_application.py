"""The ASGI application behind uvicorn on a real socket."""

import asyncio
import contextlib
import json

import msgspec
import pytest
from api_fixtures import echo, live_faces, served
from msgspec import UNSET

from flashmesh.functions.errors import ImportFailed
from flashmesh.gateway.api.operations import OPERATIONS
from flashmesh.gateway.api.readiness import readiness
from flashmesh.gateway.api.schemas import (
    Accepted,
    EndpointHealth,
    ExecutionList,
    ExecutionStatus,
    JobRefusal,
    JobStatus,
    JobStream,
    Purged,
    Readiness,
    Refusal,
)
from flashmesh.gateway.api.starlette_app import ApiLimits
from flashmesh.kit.ids import EndpointName
from flashmesh.wire.frames import Log


def run(main, body=echo, limits=None, **options):
    """`main(client, faces)` against a server of its own."""

    async def go():
        faces = live_faces(body, **options)
        async with served(faces.application(limits=limits)) as client:
            await main(client, faces)

    asyncio.run(go())


def read(response, kind):
    return msgspec.json.decode(response.content, type=kind)


def hold(worker, frame):
    """Never answers by itself."""


def two_items(worker, frame):
    worker.item(frame, b"1")
    worker.item(frame, b'"two"')
    worker.succeed(frame, b"", items=2)


async def until(condition):
    """Let the loop run until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in several places
            await asyncio.sleep(0.001)


def events(text):
    """(name, data) of each event."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name = next((line[7:] for line in lines if line.startswith("event: ")), "")
            found.append((name, "\n".join(line[6:] for line in lines if line.startswith("data: "))))
    return found


def test_calls_go_through_the_same_handlers():
    async def main(client, faces):
        response = await client.post("/v1/functions/m.f:invoke", json={"input": {"x": 1}})
        assert response.status_code == 200
        assert response.json()["output"] == {"x": 1}
        assert response.headers["x-execution-id"] == response.json()["executionId"]
        response = await client.post("/v2/jobs/echo/runsync", json={"input": [1]})
        assert read(response, JobStatus).output == [1]

    run(main)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/functions/nobody:invoke", 404, "FUNCTION_NOT_FOUND"),
        ("POST", "/v1/functions/echo:invoke", 409, "AMBIGUOUS_FUNCTION"),
        ("GET", "/v1/functions/nobody", 404, "FUNCTION_NOT_FOUND"),
        ("GET", "/v1/executions/nobody", 404, "EXECUTION_NOT_FOUND"),
        ("DELETE", "/v1/executions/nobody", 404, "EXECUTION_NOT_FOUND"),
        ("POST", "/v1/executions/nobody:retry", 404, "EXECUTION_NOT_FOUND"),
        ("GET", "/nothing/here", 404, "NOT_FOUND"),
        ("PUT", "/v1/functions", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/executions?status=bad", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/executions?limit=0", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/executions?limit=1001", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/executions?limit=1&limit=2", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/executions?odd=1", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/executions?function=", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/executions?after=nobody", 404, "EXECUTION_NOT_FOUND"),
        ("GET", "/v1/executions?function=nobody", 404, "FUNCTION_NOT_FOUND"),
        ("GET", "/v1/logs?follow=2", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/logs?tail=-1", 400, "VALIDATION_ERROR"),
    ],
)
def test_refusals_of_the_functions_api_have_one_shape(method, path, status, code):
    async def main(client, faces):
        response = await client.request(method, path, json={"input": 1} if method == "POST" else None)
        assert response.status_code == status
        refusal = read(response, Refusal)
        assert refusal.error == code
        assert refusal.message

    run(main)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/nobody/run", 404),
        ("POST", "/v2/jobs/nobody/run", 404),
        ("GET", "/v2/m/status/nobody", 404),
        ("GET", "/v2/m/stream/nobody", 404),
        ("POST", "/v2/m/cancel/nobody", 404),
        ("POST", "/v2/m/retry/nobody", 404),
        ("POST", "/v2/nobody/purge-queue", 404),
        ("GET", "/v2/nobody/health", 404),
        ("GET", "/v2/m/run", 405),
        ("GET", "/v2/m/cancel/x", 405),
        ("POST", "/v2/m/explode", 404),
    ],
)
def test_refusals_of_the_queue_api_have_one_shape(method, path, status):
    async def main(client, faces):
        response = await client.request(method, path, json={"input": 1} if method == "POST" else None)
        assert response.status_code == status
        assert read(response, JobRefusal).error

    run(main)


def test_an_ambiguous_name_lists_what_it_could_mean():
    async def main(client, faces):
        response = await client.post("/v1/functions/echo:invoke", json={"input": 1})
        assert "jobs.echo" in response.json()["message"]

    run(main)


def test_a_body_that_is_too_large_is_refused_before_it_is_read():
    async def main(client, faces):
        response = await client.post("/v1/functions/m.f:invoke", content=b"x" * 2000)
        assert (response.status_code, response.json()["error"]) == (413, "PAYLOAD_TOO_LARGE")
        assert "FLASH_MAX_BODY_BYTES" in response.json()["message"]

        async def pieces():
            for _ in range(20):
                yield b"x" * 100

        response = await client.post("/v2/m/run", content=pieces())
        assert response.status_code == 413

    run(main, limits=ApiLimits(max_body_bytes=1000))


def test_a_body_that_trickles_is_given_up():
    async def main(client, faces):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        try:
            writer.write(b"POST /v1/functions/m.f:invoke HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            assert b" 408 " in await reader.readline()
            text = b""
            while b"BODY_TOO_SLOW" not in text:
                text += await reader.readexactly(1)
        finally:
            writer.close()
            await writer.wait_closed()

    run(main, limits=ApiLimits(body_limit_s=0.05))


def test_a_client_that_goes_away_does_not_end_what_it_asked_for():
    async def main(client, faces):
        task = asyncio.create_task(client.post("/v1/functions/m.f:invoke", json={"input": 1}))
        await until(lambda: faces.store.recent())
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        execution = faces.store.recent()[0]
        worker = next(iter(faces.dispatcher._lanes["m"].slots.workers.values())).port
        await until(lambda: execution.id in worker.running)
        worker.succeed(worker.running[execution.id], b"9")
        response = await client.get(f"/v1/executions/{execution.id}")
        assert read(response, ExecutionStatus).output == 9

    run(main, hold)


def test_an_execution_is_shown_listed_and_filtered():
    async def main(client, faces):
        ids = []
        for n in range(5):
            response = await client.post("/v1/functions/m.f:invoke", json={"input": n})
            ids.append(response.json()["executionId"])
        shown = read(await client.get(f"/v1/executions/{ids[0]}"), ExecutionStatus)
        assert (shown.status, shown.output, shown.function, shown.kind) == ("success", 0, "m.f", "sync")
        assert shown.finishedAt.endswith("Z")
        first = read(await client.get("/v1/executions?limit=2"), ExecutionList)
        assert [e.executionId for e in first.executions] == [ids[4], ids[3]]
        second = read(await client.get(f"/v1/executions?limit=3&after={first.next}"), ExecutionList)
        assert [e.executionId for e in second.executions] == ids[2::-1]
        last = read(await client.get(f"/v1/executions?limit=3&after={second.next}"), ExecutionList)
        assert (last.executions, last.next) == ([], None)
        assert not read(await client.get("/v1/executions?status=error"), ExecutionList).executions
        assert len(read(await client.get("/v1/executions?function=f&status=success"), ExecutionList).executions) == 5

    run(main)


def test_a_failed_execution_is_read_with_200():
    def fail(worker, frame):
        worker.fail(frame, KeyError("k"))

    async def main(client, faces):
        response = await client.post("/v1/functions/m.f:invoke", json={"input": 1})
        assert response.status_code == 500
        shown = await client.get(f"/v1/executions/{response.json()['executionId']}")
        assert shown.status_code == 200
        assert read(shown, ExecutionStatus).error.type == "KeyError"

    run(main, fail)


def test_a_waiting_execution_is_cancelled_and_stays_so():
    async def main(client, faces):
        busy = [(await client.post("/v1/functions/m.f:enqueue", json={"input": n})).json() for n in range(2)]
        waiting = busy[1]["executionId"]
        response = await client.delete(f"/v1/executions/{waiting}")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        assert (await client.delete(f"/v1/executions/{waiting}")).json()["status"] == "cancelled"
        shown = read(await client.get(f"/v1/executions/{waiting}"), ExecutionStatus)
        assert (shown.status, shown.error.code) == ("cancelled", "CANCELLED")

    run(main, hold, slots=1)


def test_a_running_execution_is_cancelled_when_its_worker_has_stopped_it():
    from flashmesh.functions.errors import Cancelled

    async def main(client, faces):
        accepted = (await client.post("/v2/m/run", json={"input": 1})).json()
        worker = next(iter(faces.dispatcher._lanes["m"].slots.workers.values())).port
        await until(lambda: accepted["id"] in worker.running)
        task = asyncio.create_task(client.post(f"/v2/m/cancel/{accepted['id']}"))
        await until(lambda: faces.source.cancelled)
        assert not task.done()
        worker.fail(worker.running[accepted["id"]], Cancelled(), "CANCELLED")
        assert (await task).json()["status"] == "CANCELLED"

    run(main, hold)


def test_stream_gives_each_item_once_and_then_the_end():
    async def main(client, faces):
        job = (await client.post("/v2/m/run", json={"input": 1})).json()["id"]
        seen, last = [], None
        while last is None or last.stream or last.status not in ("COMPLETED", "FAILED"):
            last = read(await client.get(f"/v2/m/stream/{job}"), JobStream)
            seen += [item.output for item in last.stream]
        assert seen == [1, "two"]
        status = read(await client.get(f"/v2/m/status/{job}"), JobStatus)
        assert status.output == [1, "two"]

    run(main, two_items)


def test_stream_waits_for_something_new():
    async def main(client, faces):
        job = (await client.post("/v2/m/run", json={"input": 1})).json()["id"]
        worker = next(iter(faces.dispatcher._lanes["m"].slots.workers.values())).port
        await until(lambda: job in worker.running)
        task = asyncio.create_task(client.get(f"/v2/m/stream/{job}"))
        await until(lambda: faces.dispatcher._calls[job].watchers)
        assert not task.done()
        worker.item(worker.running[job], b"5")
        assert (await task).json() == {"status": "IN_PROGRESS", "stream": [{"output": 5}]}
        response = await client.get(f"/v2/m/stream/{job}?wait=0")
        assert response.json() == {"status": "IN_PROGRESS", "stream": []}

    run(main, hold)


@pytest.mark.parametrize(
    ("path", "end"),
    [("/v1/functions/m.f:invoke", "executionId"), ("/v2/m/runsync", "id")],
)
def test_a_call_streams_as_events(path, end):
    async def main(client, faces):
        response = await client.post(path, json={"input": 1}, headers={"accept": "text/event-stream"})
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-execution-id"]
        told = events(response.text)
        assert told[:2] == [("", "1"), ("", '"two"')]
        assert told[2][0] == "end"
        assert json.loads(told[2][1])[end] == response.headers["x-execution-id"]

    run(main, two_items)


def test_a_plain_result_streams_as_one_event():
    async def main(client, faces):
        response = await client.post(
            "/v1/functions/m.f:invoke", json={"input": "a\nb"}, headers={"accept": "text/event-stream"}
        )
        assert events(response.text)[0] == ("", '"a\\nb"')

    run(main)


def test_a_stream_that_fails_ends_in_an_error_event():
    def fail(worker, frame):
        worker.item(frame, b"1")
        worker.fail(frame, ValueError("late"))

    async def main(client, faces):
        for path in ("/v1/functions/m.f:invoke", "/v2/m/runsync"):
            response = await client.post(path, json={"input": 1}, headers={"accept": "text/event-stream"})
            name, data = events(response.text)[-1]
            assert name == "error"
            assert "late" in data

    run(main, fail)


def test_a_call_that_never_begins_is_not_a_stream():
    async def main(client, faces):
        for name in ("m",):
            faces.dispatcher.fail_endpoint(EndpointName(name), ImportFailed("m.py:1: no"))
        response = await client.post(
            "/v1/functions/m.f:invoke", json={"input": 1}, headers={"accept": "text/event-stream"}
        )
        assert (response.status_code, response.json()["error"]) == (503, "IMPORT_FAILED")

    run(main)


def test_a_streamed_call_belongs_to_its_client():
    def one(worker, frame):
        worker.item(frame, b"1")

    async def main(client, faces):
        async with client.stream(
            "POST", "/v1/functions/m.f:invoke", json={"input": 1}, headers={"accept": "text/event-stream"}
        ) as response:
            async for _ in response.aiter_bytes():
                break
        await until(lambda: faces.source.cancelled)

    run(main, one)


def test_an_accepted_job_is_followed_as_events_and_outlives_its_reader():
    async def main(client, faces):
        job = (await client.post("/v2/m/run", json={"input": 1})).json()["id"]
        worker = next(iter(faces.dispatcher._lanes["m"].slots.workers.values())).port
        await until(lambda: job in worker.running)
        frame = worker.running[job]
        worker.item(frame, b"1")
        accept = {"accept": "text/event-stream"}
        async with client.stream("GET", f"/v2/m/stream/{job}", headers=accept) as response:
            async for _ in response.aiter_bytes():
                break
        await until(lambda: not faces.dispatcher._calls[job].watchers)
        worker.item(frame, b"2")
        worker.succeed(frame, b"", items=2)
        assert not faces.source.cancelled
        told = events((await client.get(f"/v2/m/stream/{job}", headers=accept)).text)
        assert told[0] == ("", "2")
        assert told[-1][0] == "end"
        assert json.loads(told[-1][1])["status"] == "COMPLETED"

    run(main, hold)


def test_a_long_stream_is_credited_back_to_the_worker():
    def many(worker, frame):
        for n in range(64):
            worker.item(frame, str(n).encode())
        worker.count = 64

    async def main(client, faces):
        worker = next(iter(faces.dispatcher._lanes["m"].slots.workers.values())).port
        async with client.stream(
            "POST", "/v2/m/runsync", json={"input": 1}, headers={"accept": "text/event-stream"}
        ) as response:
            execution = response.headers["x-execution-id"]
            await until(lambda: worker.credits(execution) == 64)
            worker.succeed(worker.running[execution], b"", items=64)
            text = "".join([part async for part in response.aiter_text()])
        assert [data for name, data in events(text) if not name] == [str(n) for n in range(64)]

    run(main, many)


def test_purge_cancels_what_waits_and_health_counts():
    async def main(client, faces):
        jobs = [(await client.post("/v2/m/run", json={"input": n})).json()["id"] for n in range(3)]
        health = read(await client.get("/v2/m/health"), EndpointHealth)
        assert health.jobs.inProgress + health.jobs.inQueue == 3
        purged = read(await client.post("/v2/m/purge-queue"), Purged)
        assert purged.removed >= 1
        status = read(await client.get(f"/v2/m/status/{jobs[-1]}"), JobStatus)
        assert status.status == "CANCELLED"

    run(main, hold, slots=1)


def test_lines_of_output_come_as_events_and_go_on_when_followed():
    def line(text, execution="e1", function="m.f"):
        return Log("m", "m/w1", "stdout", text, function, execution, 1)

    async def main(client, faces):
        faces.logbook.add(line("one"))
        faces.logbook.add(line("other", "e2", "jobs.echo"))
        told = events((await client.get("/v1/logs?function=f")).text)
        assert [json.loads(data).get("text") for name, data in told if not name] == ["one"]
        assert told[-1][0] == "end"
        async with client.stream("GET", "/v1/logs?execution=e1&follow=1&tail=0") as response:
            await until(lambda: faces.logbook._followers)
            faces.logbook.add(line("two"))
            async for part in response.aiter_text():
                assert json.loads(events(part)[0][1])["text"] == "two"
                break
        await until(lambda: not faces.logbook._followers)

    run(main)


def test_functions_are_made_shown_changed_and_deleted():
    async def main(client, faces):
        spec = {"name": "ext", "endpointUrl": "http://127.0.0.1:9/invoke"}
        response = await client.post("/v1/functions", json=spec)
        assert (response.status_code, response.headers["location"]) == (201, "/v1/functions/ext")
        assert response.json()["name"] == "ext"
        assert (await client.post("/v1/functions", json=spec)).status_code == 409
        assert "ext" in [function["name"] for function in (await client.get("/v1/functions")).json()]
        assert (await client.get("/v1/functions/ext")).json()["name"] == "ext"
        assert (await client.patch("/v1/functions/ext", json={"concurrency": 2})).json()["concurrency"] == 2
        assert (await client.put("/v1/functions/ext/replicas", json={"replicas": 2})).json() == {
            "function": "ext",
            "replicas": 2,
        }
        assert (await client.get("/v1/functions/ext/replicas")).json()["desiredReplicas"] == 2
        response = await client.delete("/v1/functions/ext")
        assert (response.status_code, response.content) == (204, b"")
        assert (await client.delete("/v1/functions/ext")).status_code == 404

    run(main)


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/v1/functions", {"name": "ext", "odd": 1}, "odd"),
        ("POST", "/v1/functions", {"name": "1x", "endpointUrl": "http://x/"}, "name"),
        ("POST", "/v1/functions", {"name": "ext", "timeoutMs": 0, "endpointUrl": "http://x/"}, "timeoutMs"),
        ("POST", "/v1/functions", {"endpointUrl": "http://x/"}, "name"),
        ("POST", "/v1/functions", {"name": "ext"}, "endpointUrl"),
        ("PATCH", "/v1/functions/m.f", {"queueSize": 5}, "queueSize"),
        ("PATCH", "/v1/functions/m.f", {"concurrency": "x"}, "concurrency"),
        ("PUT", "/v1/functions/m.f/replicas", {"replicas": -1}, "replicas"),
        ("PUT", "/v1/functions/m.f/replicas", {"replicas": "1"}, "replicas"),
        ("PUT", "/v1/functions/m.f/replicas", {}, "replicas"),
    ],
)
def test_a_field_that_is_wrong_is_named(method, path, body, field):
    async def main(client, faces):
        response = await client.request(method, path, json=body)
        assert response.status_code == 400
        assert any(detail.startswith(field) for detail in read(response, Refusal).details)

    run(main)


def test_a_completion_reaches_its_taker_with_its_attempt():
    async def main(client, faces):
        path = "/v1/internal/executions/e1:complete"
        response = await client.post(path, json={"success": True}, headers={"X-Dispatch-Attempt": "2"})
        assert response.status_code == 204
        assert faces.completions == [("e1", 2, b'{"success":true}')]
        for attempt in ("0", "x", "-1", "9" * 30):
            response = await client.post(path, json={"success": True}, headers={"X-Dispatch-Attempt": attempt})
            assert response.status_code == 400

    run(main)


def test_a_server_with_one_broken_endpoint_is_ready_and_says_which_one_it_is():
    """A load balancer that took it out would take the others' calls, too."""

    async def main(client, faces):
        assert read(await client.get("/readyz"), Readiness).status == "ok"
        faces.dispatcher.fail_endpoint(EndpointName("m"), ImportFailed("m.py:3: no module named x"))
        response = await client.get("/readyz")
        assert response.status_code == 200
        found = read(response, Readiness)
        assert (found.status, found.reasons[0].endpoint, found.reasons[0].code) == ("degraded", "m", "IMPORT_FAILED")
        assert (await client.get("/healthz")).json() == {"status": "ok"}

    run(main)


def test_a_server_that_can_serve_nothing_is_not_ready():
    async def main(client, faces):
        for name in ("m", "jobs", "other"):
            assert (await client.get("/readyz")).status_code == 200
            faces.dispatcher.fail_endpoint(EndpointName(name), ImportFailed("m.py:3: no module named x"))
        response = await client.get("/readyz")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        found = read(response, Readiness)
        assert (found.status, len(found.reasons)) == ("unavailable", 3)
        assert (await client.get("/healthz")).status_code == 200

    run(main)


def test_a_server_that_cannot_write_down_what_it_accepts_is_not_ready():
    async def main(client, faces):
        faces.store.unavailable = OSError("the disk is full")
        response = await client.get("/readyz")
        assert response.status_code == 503
        found = read(response, Readiness)
        assert (found.status, found.reasons[0].code, found.reasons[0].endpoint) == (
            "unavailable",
            "STORE_UNAVAILABLE",
            UNSET,
        )
        faces.store.unavailable = None
        assert (await client.get("/readyz")).status_code == 200

    run(main)


@pytest.mark.parametrize("told_all", [True, False])
def test_messages_of_readiness_are_for_those_who_may_see_files_and_lines(told_all):
    wrong = {"name": "m", "state": "failed", "error": {"code": "IMPORT_FAILED", "message": "m.py:3"}}
    fine = {"name": "n", "state": "cold", "error": None}
    answer = readiness([wrong, fine], store=None, told_all=told_all)
    assert (b"m.py:3" in answer.body) is told_all
    assert answer.status == 200


def test_a_broken_build_beside_workers_of_the_one_before_leaves_the_server_ready():
    wrong = {"name": "m", "state": "ready", "error": {"code": "IMPORT_FAILED", "message": "m.py:3"}}
    assert readiness([wrong], store=None, told_all=False).status == 200
    assert readiness([{**wrong, "state": "failed"}], store=None, told_all=False).status == 503


def test_a_server_without_functions_is_ready_for_them():
    assert readiness([], store=None, told_all=False).status == 200


def test_the_docs_page_and_its_files_come_from_here():
    async def main(client, faces):
        page = await client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
            assert f"/docs/assets/{name}" in page.text
            assert len((await client.get(f"/docs/assets/{name}")).content) > 500
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert (await client.get("/docs/assets/other")).status_code == 404

    run(main)


def test_head_is_get_without_its_body():
    async def main(client, faces):
        response = await client.head("/healthz")
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == "15"

    run(main)


def test_a_fault_of_ours_is_a_500_that_tells_nothing():

    async def main(client, faces):
        def broken(callee):
            raise RuntimeError("a secret")

        faces.shelf.describe = broken
        response = await client.get("/v1/functions")
        assert (response.status_code, response.json()["error"]) == (500, "INTERNAL")
        assert "secret" not in response.text

    run(main)


def test_every_documented_path_is_served_and_nothing_else():
    async def main(client, faces):
        document = (await client.get("/openapi.json")).json()
        described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        assert described == {(operation.method, operation.path) for operation in OPERATIONS}

    run(main)


def test_the_wait_is_a_header_of_exactly_the_routes_that_wait():
    async def main(client, faces):
        document = (await client.get("/openapi.json")).json()
        waiting = {
            path
            for path, methods in document["paths"].items()
            for operation in methods.values()
            if any(parameter.get("name") == "X-Timeout-Ms" for parameter in operation.get("parameters", ()))
        }
        assert "/v1/functions/{name}:invoke" in waiting
        assert all(path.endswith((":invoke", "/runsync", "/run_sync")) for path in waiting)

    run(main)


def test_the_document_is_valid():
    from openapi_spec_validator import validate

    async def main(client, faces):
        validate((await client.get("/openapi.json")).json())

    run(main)


def test_metrics_are_served_when_there_are_any():
    async def go():
        faces = live_faces()
        async with served(faces.application(metrics=lambda: b"up 1\n")) as client:
            response = await client.get("/metrics")
            assert response.text == "up 1\n"
            assert "/metrics" in (await client.get("/openapi.json")).json()["paths"]
        async with served(live_faces().application()) as client:
            assert (await client.get("/metrics")).status_code == 404

    asyncio.run(go())


def test_accepted_job_is_readable_by_the_other_face():
    async def main(client, faces):
        job = read(await client.post("/v2/m/run", json={"input": 3}), Accepted)
        await until(lambda: faces.execution(job.id).ended)
        assert read(await client.get(f"/v1/executions/{job.id}"), ExecutionStatus).output == 3

    run(main)
