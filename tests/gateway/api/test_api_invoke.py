"""`:invoke` and `:enqueue` on the short way, in virtual time."""

import msgspec
import pytest
from api_fixtures import Faces
from queueing_fixtures import VirtualClock

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.store import Retention
from flashmesh.functions.errors import ImportFailed
from flashmesh.gateway.api.schemas import EnqueueResponse, InvocationResponse, Refusal
from flashmesh.kit.ids import EndpointName

PATH = "/v1/functions/m.f:invoke"


def read(asked, kind):
    return msgspec.json.decode(asked.answer.body, type=kind)


def test_a_result_is_spliced_from_the_workers_bytes():
    faces = Faces()
    worker = faces.worker()
    asked = faces.invoke("f", {"x": 1})
    frame = worker.begin()
    assert asked.waiting
    worker.succeed(frame, b'{ "spaced" :1.0}')
    assert asked.status == 200
    assert asked.answer.body == b'{"executionId":"%s","status":"success","output":{ "spaced" :1.0}}' % (
        frame.execution.encode()
    )
    assert read(asked, InvocationResponse).status == "success"
    assert asked.headers["x-execution-id"] == frame.execution
    assert asked.headers["x-cold-start"] == "false"


def test_the_worker_gets_the_clients_bytes_and_metadata_beside_them():
    faces = Faces()
    worker = faces.worker()
    body = b'{ "input": [1,2] , "metadata": {"who": "me"} }'
    faces.ask("POST", PATH, body, {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})
    frame = worker.begin()
    assert frame.payload == body
    assert frame.meta["metadata"] == {"who": "me"}
    assert frame.meta["trace"].startswith("00-aaaa")


def test_server_timing_tells_queue_route_cold_and_run():
    faces = Faces()
    asked = faces.invoke("f")
    faces.clock.advance(0.5)
    worker = faces.worker()
    frame = worker.begin()
    faces.clock.advance(0.25)
    worker.succeed(frame, b"1", run_ms=200.0)
    timing = dict(part.split(";dur=") for part in asked.headers["server-timing"].split(", "))
    assert timing == {"queue": "0.000", "route": "50.000", "cold": "500.000", "run": "200.000"}
    assert asked.headers["x-cold-start"] == "true"


def test_trace_headers_come_back_and_others_do_not():
    faces = Faces()
    worker = faces.worker()
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    asked = faces.invoke("f", headers={"traceparent": parent, "X-Trace-Id": "t-1", "X-Other": "no"})
    worker.run_all()
    assert asked.headers["traceparent"] == parent
    assert asked.headers["x-trace-id"] == "t-1"
    assert "x-other" not in asked.headers


def test_a_traceparent_that_is_none_is_left_aside():
    faces = Faces()
    worker = faces.worker()
    asked = faces.invoke("f", headers={"traceparent": "nonsense\x01"})
    assert "trace" not in worker.begin().meta
    assert asked.waiting


def test_null_is_an_input():
    faces = Faces()
    worker = faces.worker()
    asked = faces.ask("POST", PATH, b'{"input":null}')
    assert worker.run_all() == 1
    assert asked.status == 200


@pytest.mark.parametrize(
    ("body", "status", "code", "names"),
    [
        (b"", 400, "VALIDATION_ERROR", "body"),
        (b"   ", 400, "VALIDATION_ERROR", "body"),
        (b"{}", 400, "VALIDATION_ERROR", "input"),
        (b"[]", 400, "VALIDATION_ERROR", "body"),
        (b"{", 400, "MALFORMED_REQUEST", ""),
        (b'{"input":1}}', 400, "MALFORMED_REQUEST", ""),
        (b'{"input":"\xff"}', 400, "MALFORMED_REQUEST", ""),
        (b'{"input":1,"extra":2}', 400, "VALIDATION_ERROR", "extra"),
        (b'{"input":1,"metadata":5}', 400, "VALIDATION_ERROR", "metadata"),
        (b'{"input":1,"metadata":{"a":5}}', 400, "VALIDATION_ERROR", "metadata"),
        (b'{"input":NaN}', 422, "VALIDATION_ERROR", "input"),
        (b'{"input":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400, "MALFORMED_REQUEST", ""),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused_by_name(body, status, code, names):
    faces = Faces()
    asked = faces.ask("POST", PATH, body)
    refusal = read(asked, Refusal)
    assert (asked.status, refusal.error) == (status, code)
    if names:
        assert any(names in detail for detail in refusal.details)
    assert not faces.store.recent()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "300001", "", "abc", "1, 2", "9" * 400, "１"])
def test_a_wait_out_of_range_is_refused_by_name(value):
    faces = Faces()
    asked = faces.ask("POST", PATH, {"input": 1}, {"X-Timeout-Ms": value.encode().decode("latin-1")})
    assert asked.status == 400
    assert any("X-Timeout-Ms" in detail for detail in asked.json["details"])
    assert not faces.store.recent()


@pytest.mark.parametrize("value", ["1", "300000"])
def test_the_ends_of_the_range_are_taken(value):
    faces = Faces()
    assert faces.invoke("f", headers={"X-Timeout-Ms": value}).waiting


def test_blanks_around_a_headers_value_are_no_part_of_it():
    faces = Faces()
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    worker = faces.worker()
    first = faces.invoke("f", headers={"X-Timeout-Ms": "1500 ", "Idempotency-Key": "k\t", "traceparent": trace + " "})
    frame = worker.begin()
    assert (frame.meta["trace"], frame.meta["idempotency_key"]) == (trace, "k")
    faces.clock.advance(1.6)
    assert first.status == 408


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "\x07", "é"])
def test_an_idempotency_key_out_of_range_is_refused(key):
    faces = Faces()
    asked = faces.invoke("f", headers={"Idempotency-Key": key})
    assert asked.status == 400
    assert asked.json["details"][0].startswith("Idempotency-Key")


def test_a_body_in_another_form_is_refused():
    faces = Faces()
    asked = faces.ask("POST", PATH, b"<a/>", {"Content-Type": "application/xml"})
    assert (asked.status, asked.json["error"]) == (415, "UNSUPPORTED_MEDIA")
    asked = faces.ask("POST", PATH, b"x", {"Content-Encoding": "gzip"})
    assert asked.status == 415


def test_bytes_pass_as_bytes_both_ways():
    faces = Faces()
    worker = faces.worker()
    headers = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
    asked = faces.ask("POST", PATH, b"\x00\xff", headers)
    frame = worker.inbox[0]
    assert (frame.content_type, frame.accept, frame.payload) == (
        "application/octet-stream",
        "application/octet-stream",
        b"\x00\xff",
    )
    from flashmesh.wire.frames import Result

    worker.begin()
    worker.running.clear()
    worker.say(Result(frame.execution, frame.attempt, 1, "application/octet-stream", payload=b"\x01\x02"))
    assert asked.answer.body == b"\x01\x02"
    assert asked.headers["content-type"] == "application/octet-stream"


def test_the_wait_ends_with_408_and_the_execution_goes_on():
    faces = Faces()
    worker = faces.worker()
    asked = faces.invoke("f", headers={"X-Timeout-Ms": "1500"})
    frame = worker.begin()
    faces.clock.advance(1.4)
    assert asked.waiting
    faces.clock.advance(0.2)
    assert asked.status == 408
    told = read(asked, InvocationResponse)
    assert (told.executionId, told.status, told.error.code) == (frame.execution, "running", "WAIT_TIMEOUT")
    worker.succeed(frame, b"42")
    assert len(asked.answers) == 1
    assert faces.ask("GET", f"/v1/executions/{frame.execution}").json["output"] == 42


def test_without_a_header_the_wait_is_thirty_seconds():
    faces = Faces()
    first = faces.invoke("f")
    faces.clock.advance(20.0)
    second = faces.invoke("f")
    faces.clock.advance(10.1)
    assert first.status == 408
    assert second.waiting
    faces.clock.advance(20.0)
    assert second.status == 408


def test_one_waiters_end_is_not_the_others():
    """A client's timeout once cancelled what all waiters of one key shared."""
    faces = Faces()
    worker = faces.worker()
    key = {"Idempotency-Key": "k"}
    short = faces.invoke("f", 1, headers={**key, "X-Timeout-Ms": "100"})
    long = faces.invoke("f", 1, headers=key)
    faces.clock.advance(0.2)
    assert short.status == 408
    worker.run_all()
    assert long.status == 200
    assert long.json["executionId"] == short.json["executionId"]


def test_waits_leave_no_timer_behind_when_all_are_answered():
    faces = Faces()
    worker = faces.worker(slots=100)
    for wait in ("100", "200", "300") * 10:
        faces.invoke("f", headers={"X-Timeout-Ms": wait})
    while worker.run_all():
        pass
    faces.clock.advance(1.0)
    assert faces.clock.pending == 0


def test_more_lengths_of_waits_than_lines_all_end_in_time():
    faces = Faces()
    asked = [faces.invoke("f", headers={"X-Timeout-Ms": str(1000 + 10 * n)}) for n in range(40)]
    faces.clock.advance(1.2)
    assert [one.waiting for one in asked] == [n > 20 for n in range(40)] or [one.waiting for one in asked] == [
        n >= 20 for n in range(40)
    ]


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        ("USER_ERROR", 500, "error"),
        ("VALIDATION_ERROR", 422, "error"),
        ("TIMEOUT", 504, "timeout"),
        ("IMPORT_FAILED", 503, "error"),
        ("NOT_ENCODABLE", 500, "error"),
    ],
)
def test_a_failed_call_is_not_a_200(code, status, word):
    faces = Faces()
    worker = faces.worker()
    asked = faces.invoke("f")
    worker.fail(worker.begin(), ValueError("no such thing"), code)
    assert asked.status == status
    told = read(asked, InvocationResponse)
    assert (told.status, told.error.code, told.error.message) == (word, code, "no such thing")
    assert told.error.type == "ValueError"
    assert asked.headers["x-execution-id"] == told.executionId


def test_an_endpoint_whose_import_failed_refuses_with_the_reason():
    faces = Faces()
    faces.dispatcher.fail_endpoint(EndpointName("m"), ImportFailed("m.py:3: no module named x"))
    asked = faces.invoke("f")
    assert asked.status == 503
    assert read(asked, Refusal).error == "IMPORT_FAILED"
    assert "m.py:3" in asked.json["message"]


def test_a_full_queue_says_so_and_when_to_come_back():
    faces = Faces(queue_size=1)
    assert faces.invoke("f").waiting
    asked = faces.invoke("f")
    assert (asked.status, asked.json["error"]) == (429, "QUEUE_FULL")
    assert int(asked.headers["retry-after"]) >= 1
    assert asked.headers["x-queue-reject-reason"] == "depth"


def test_a_call_that_finds_the_queue_full_is_refused_unread_and_counted():
    """Whatever it says: turning a flood away must cost less than reading it."""
    faces = Faces(queue_size=1)
    refused: list[str] = []
    faces.dispatcher.on_refused.append(refused.append)
    assert faces.invoke("f").waiting
    asked = faces.ask("POST", "/v1/functions/f:invoke", b"{", {})
    assert (asked.status, asked.json["error"]) == (429, "QUEUE_FULL")
    assert len(refused) == 1


def test_a_backlog_that_is_full_of_bytes_says_so():
    faces = Faces(backlog_bytes=100)
    assert faces.enqueue("f", "x" * 60).status == 202
    asked = faces.enqueue("f", "x" * 60)
    assert (asked.status, asked.headers["x-queue-reject-reason"]) == (429, "bytes")


def test_the_same_key_means_the_same_execution_while_it_runs_and_after():
    faces = Faces()
    worker = faces.worker()
    key = {"Idempotency-Key": "k"}
    first, second = faces.invoke("f", 1, headers=key), faces.invoke("f", 1, headers=key)
    assert worker.run_all() == 1
    third = faces.invoke("f", 1, headers=key)
    assert worker.run_all() == 0
    assert first.json == second.json == third.json
    assert first.headers["x-execution-id"] == third.headers["x-execution-id"]


def test_the_same_key_with_another_body_is_a_conflict():
    faces = Faces()
    key = {"Idempotency-Key": "k"}
    faces.invoke("f", 1, headers=key)
    asked = faces.invoke("f", 2, headers=key)
    assert (asked.status, asked.json["error"]) == (409, "IDEMPOTENCY_CONFLICT")


def test_a_replay_whose_result_was_evicted_is_gone_and_never_run_again():
    clock = VirtualClock()
    store = MemoryStore(now=clock.wall, retention=Retention(bytes=10))
    faces = Faces(clock=clock, store=store)
    worker = faces.worker()
    key = {"Idempotency-Key": "k"}
    first = faces.invoke("f", 1, headers=key)
    worker.succeed(worker.begin(), b'"' + b"x" * 100 + b'"')
    assert first.status == 200
    asked = faces.invoke("f", 1, headers=key)
    assert (asked.status, asked.json["error"]) == (410, "RESULT_EVICTED")
    assert asked.headers["x-execution-id"] == first.json["executionId"]
    assert worker.run_all() == 0
    shown = faces.ask("GET", f"/v1/executions/{first.json['executionId']}")
    assert shown.status == 410


def test_enqueue_answers_202_once_and_the_execution_can_be_read():
    faces = Faces()
    asked = faces.enqueue("f", {"x": 1}, headers={"X-Trace-Id": "t"})
    assert asked.status == 202
    told = read(asked, EnqueueResponse)
    assert told.status == "queued"
    assert faces.execution(told.executionId).kind == "async"
    assert asked.headers["x-trace-id"] == "t"
    shown = faces.ask("GET", f"/v1/executions/{told.executionId}").json
    assert (shown["status"], shown["startedAt"], shown["traceId"]) == ("queued", None, "t")


def test_a_wait_means_nothing_where_nobody_waits():
    """`X-Timeout-Ms` is how long a client waits: what is accepted to run later has the time its function gives it."""
    faces = Faces()
    worker = faces.worker()
    asked = faces.ask("POST", "/v1/functions/f:enqueue", {"input": 1}, {"X-Timeout-Ms": "100"})
    assert asked.status == 202
    faces.clock.advance(60.0)
    frame = worker.begin()
    assert frame.deadline_ms == 0
    worker.succeed(frame, b"42")
    found = faces.ask("GET", f"/v1/executions/{asked.json['executionId']}").json
    assert (found["status"], found["output"]) == ("success", 42)


def test_a_replayed_enqueue_names_the_first_execution_and_where_it_stands():
    faces = Faces()
    worker = faces.worker()
    key = {"Idempotency-Key": "k"}
    first = faces.enqueue("f", 1, headers=key)
    worker.run_all()
    second = faces.enqueue("f", 1, headers=key)
    assert second.status == 202
    assert second.json == {"executionId": first.json["executionId"], "status": "success"}


def test_invoke_with_the_key_of_an_enqueued_call_waits_for_it():
    faces = Faces()
    worker = faces.worker()
    key = {"Idempotency-Key": "k"}
    queued = faces.enqueue("f", 1, headers=key)
    asked = faces.invoke("f", 1, headers=key)
    assert asked.waiting
    worker.run_all()
    assert asked.json["executionId"] == queued.json["executionId"]


def test_names_are_percent_decoded_and_may_be_bare_or_full():
    faces = Faces()
    worker = faces.worker()
    for path in ("m%2Ef", "m.f", "f", "%66"):
        asked = faces.ask("POST", f"/v1/functions/{path}:invoke", {"input": 1})
        worker.run_all()
        assert asked.status == 200


def test_a_name_that_is_new_in_the_directory_is_found_at_once_and_an_old_one_forgotten():
    faces = Faces()
    assert faces.hot.find(b"POST", b"/v1/functions/m.f:invoke") is not None
    gone = faces.shelf.endpoints.pop("m")
    faces.shelf.version += 1
    assert faces.hot.find(b"POST", b"/v1/functions/other.echo:invoke") is not None
    assert faces.hot.find(b"POST", b"/v1/functions/m.f:invoke") is None
    faces.shelf.endpoints["m"] = gone
    faces.shelf.version += 1
    assert faces.hot.find(b"POST", b"/v1/functions/m.f:invoke") is not None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/functions/m.f:invoke"),
        ("POST", "/v1/functions/nobody:invoke"),
        ("POST", "/v1/functions/m.f:explode"),
        ("POST", "/v1/functions/a/b:invoke"),
        ("DELETE", "/v1/executions/x"),
        ("GET", "/v1/executions"),
        ("GET", "/v1/executions/a/b"),
        ("POST", "/v2/m/status/x"),
        ("POST", "/v2/m/cancel/x"),
        ("GET", "/v2/m/stream/x"),
        ("POST", "/"),
    ],
)
def test_what_is_not_hot_is_left_to_the_application(method, path):
    assert Faces().hot.find(method.encode(), path.encode()) is None
