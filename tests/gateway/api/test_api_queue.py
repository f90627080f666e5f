"""The queue API on the short way, in virtual time."""

import json

import msgspec
import pytest
from api_fixtures import Faces
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.gateway.api.queue_paths import QueuePath, parse
from flashmesh.gateway.api.schemas import Accepted, JobRefusal, JobStatus


def read(asked, kind):
    return msgspec.json.decode(asked.answer.body, type=kind)


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        (b"/v2/m/run", QueuePath("m", None, "run")),
        (b"/v2/m/runsync", QueuePath("m", None, "runsync")),
        (b"/v2/jobs/echo/run_sync", QueuePath("jobs", "echo", "run_sync")),
        (b"/v2/jobs%2Fecho/run", QueuePath("jobs/echo", None, "run")),
        (b"/v2/m/status/abc", QueuePath("m", None, "status", "abc")),
        (b"/v2/jobs/echo/stream/abc", QueuePath("jobs", "echo", "stream", "abc")),
        (b"/v2/jobs/status/run", QueuePath("jobs", "status", "run")),
        (b"/v2/jobs/status/status/abc", QueuePath("jobs", "status", "status", "abc")),
        (b"/v2/m/purge-queue", QueuePath("m", None, "purge-queue")),
        (b"/v2/jobs/echo/health", QueuePath("jobs", "echo", "health")),
        (b"/v2/m", None),
        (b"/v2/m/", None),
        (b"/v2//run", None),
        (b"/v2/a/b/c/run", None),
        (b"/v2/m/status/", None),
        (b"/v1/m/run", None),
    ],
)
def test_an_address_says_endpoint_function_verb_and_job(path, meaning):
    assert parse(path) == meaning


@given(st.binary(max_size=60))
def test_no_path_breaks_the_reading_of_addresses(path):
    parse(b"/v2/" + path)
    Faces().hot.find(b"POST", b"/v2/" + path)


def test_run_answers_in_queue_at_once_even_when_a_worker_is_free():
    faces = Faces()
    worker = faces.worker()
    asked = faces.ask("POST", "/v2/m/run", {"input": {"x": 1}})
    assert asked.status == 200
    job = read(asked, Accepted)
    assert job.status == "IN_QUEUE"
    worker.succeed(worker.begin(), b'{"y":2}', run_ms=12.0)
    told = read(faces.ask("GET", f"/v2/m/status/{job.id}"), JobStatus)
    assert (told.status, told.output, told.executionTime, told.delayTime) == ("COMPLETED", {"y": 2}, 12, 0)
    assert told.workerId == worker.id


@pytest.mark.parametrize("verb", ["runsync", "run_sync"])
def test_runsync_waits_for_the_end(verb):
    faces = Faces()
    worker = faces.worker()
    asked = faces.ask("POST", f"/v2/m/{verb}", {"input": 1})
    frame = worker.begin()
    worker.succeed(frame, b"[1]", run_ms=3.0)
    told = read(asked, JobStatus)
    assert (told.status, told.output, told.id) == ("COMPLETED", [1], frame.execution)
    assert told.executionTime == 3
    assert asked.headers["server-timing"].startswith("queue;dur=")


def test_a_failed_job_is_200_with_failed_and_its_error():
    faces = Faces()
    worker = faces.worker()
    asked = faces.ask("POST", "/v2/m/runsync", {"input": 1})
    worker.fail(worker.begin(), ValueError("no"))
    told = read(asked, JobStatus)
    assert asked.status == 200
    assert (told.status, told.error, told.error_type) == ("FAILED", "no", "ValueError")
    again = read(faces.ask("GET", f"/v2/m/status/{told.id}"), JobStatus)
    assert (again.status, again.error) == ("FAILED", "no")


def test_after_the_wait_the_job_is_told_by_id_and_goes_on():
    faces = Faces()
    worker = faces.worker()
    asked = faces.ask("POST", "/v2/m/runsync", {"input": 1}, query="wait=2000")
    frame = worker.begin()
    faces.clock.advance(2.1)
    assert asked.json == {"id": frame.execution, "status": "IN_PROGRESS"}
    worker.succeed(frame, b"7")
    assert faces.ask("GET", f"/v2/m/status/{frame.execution}").json["output"] == 7


def test_without_wait_it_is_ninety_seconds():
    faces = Faces()
    asked = faces.ask("POST", "/v2/m/runsync", {"input": 1})
    faces.clock.advance(89.9)
    assert asked.waiting
    faces.clock.advance(0.2)
    assert asked.json["status"] == "IN_QUEUE"


@pytest.mark.parametrize("wait", ["999", "300001", "x", "", "-1", "1e3"])
def test_a_wait_out_of_range_is_refused(wait):
    asked = Faces().ask("POST", "/v2/m/runsync", {"input": 1}, query=f"a=b&wait={wait}")
    assert asked.status == 400
    assert read(asked, JobRefusal).field == "wait"


def test_a_bare_body_is_the_functions_and_passes_as_it_came():
    faces = Faces()
    worker = faces.worker()
    for body in (b'{"x": 1}', b"[1, 2]", b"5", b'{"input": 1, "x": 2}', b'{"webhook": 5}'):
        faces.ask("POST", "/v2/m/run", body)
        frame = worker.begin()
        assert frame.payload == body
        assert "webhook" not in frame.meta
        worker.succeed(frame)


def test_an_empty_body_is_an_empty_object():
    faces = Faces()
    worker = faces.worker()
    faces.ask("POST", "/v2/m/run", b"")
    assert worker.begin().payload == b"{}"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None),
        (b'{"input": NaN}', 422, "input"),
        (b'{"input":1,"webhook":5}', 400, "webhook"),
        (b'{"input":1,"webhook":"ftp://x/"}', 400, "webhook"),
        (b'{"input":1,"webhook":"http://u:p@x/"}', 400, "webhook"),
        (b'{"input":1,"webhook":"http://x/ y"}', 400, "webhook"),
        (b'{"input":1,"webhook":"http://x:80y/"}', 400, "webhook"),
        (b'{"input":1,"webhook":"http://x:99999/"}', 400, "webhook"),
        (b'{"input":1,"webhook":"http://"}', 400, "webhook"),
        (b'{"input":1,"policy":5}', 400, "policy"),
        (b'{"input":1,"policy":{"ttl":"x"}}', 400, "policy.ttl"),
        (b'{"input":1,"policy":{"ttl":0}}', 400, "policy.ttl"),
        (b'{"input":1,"policy":{"executionTimeout":-5}}', 400, "policy.executionTimeout"),
        (b'{"input":1,"policy":{"other":1}}', 400, "policy.other"),
        (b'{"input":1,"metadata":[]}', 400, "metadata"),
    ],
)
def test_a_job_that_cannot_be_taken_is_refused_by_name(body, status, field):
    faces = Faces()
    asked = faces.ask("POST", "/v2/m/run", body)
    assert asked.status == status
    assert asked.json.get("field") == field
    assert not faces.store.recent()


def test_a_jobs_own_wishes_reach_the_dispatcher():
    faces = Faces()
    worker = faces.worker()
    policy = {"executionTimeout": 5000, "lowPriority": True, "ttl": 60000}
    faces.ask("POST", "/v2/m/run", {"input": 1, "webhook": "http://hook.test/x", "policy": policy})
    frame = worker.begin()
    assert frame.deadline_ms == 5000
    assert frame.meta["webhook"] == "http://hook.test/x"
    assert frame.meta["policy"] == policy


def test_a_low_priority_job_runs_after_the_others():
    faces = Faces()
    low = faces.ask("POST", "/v2/m/run", {"input": 1, "policy": {"lowPriority": True}}).json["id"]
    usual = faces.ask("POST", "/v2/m/run", {"input": 2}).json["id"]
    worker = faces.worker()
    order = [worker.begin().execution]
    worker.succeed(worker.running[order[0]])
    order.append(worker.begin().execution)
    assert order == [usual, low]


def test_a_job_that_outlives_its_ttl_is_cancelled():
    faces = Faces()
    job = faces.ask("POST", "/v2/m/run", {"input": 1, "policy": {"ttl": 10_000}}).json["id"]
    faces.clock.advance(9.9)
    assert faces.ask("GET", f"/v2/m/status/{job}").json["status"] == "IN_QUEUE"
    faces.clock.advance(0.2)
    assert faces.ask("GET", f"/v2/m/status/{job}").json["status"] == "CANCELLED"


def test_an_endpoint_with_several_functions_asks_which():
    faces = Faces()
    asked = faces.ask("POST", "/v2/jobs/run", {"input": {"x": 1}})
    assert asked.status == 400
    assert "echo" in asked.json["error"]
    assert "inc" in asked.json["error"]


@pytest.mark.parametrize(
    ("path", "body", "function"),
    [
        ("/v2/jobs/echo/runsync", {"input": 1}, "jobs.echo"),
        ("/v2/jobs/Counter.inc/runsync", {"input": 1}, "jobs.Counter.inc"),
        ("/v2/jobs/inc/runsync", {"input": 1}, "jobs.Counter.inc"),
        ("/v2/jobs/runsync", {"input": {"function_name": "echo", "args": [1], "kwargs": {}}}, "jobs.echo"),
        ("/v2/jobs/runsync", {"input": {"method": "inc", "by": 2}}, "jobs.Counter.inc"),
    ],
)
def test_path_or_body_selects_the_function(path, body, function):
    faces = Faces()
    worker = faces.worker("jobs")
    faces.ask("POST", path, body)
    assert worker.begin().function == function


def test_what_selected_a_method_is_not_among_its_arguments():
    faces = Faces()
    worker = faces.worker("jobs")
    faces.ask("POST", "/v2/jobs/runsync", {"input": {"method": "inc", "by": 2}})
    assert json.loads(worker.begin().payload) == {"input": {"by": 2}}


@pytest.mark.parametrize("body", [{"input": {"function_name": "none"}}, {"input": {"method": "none"}}])
def test_a_function_that_an_endpoint_has_not_is_404_naming_those_it_has(body):
    asked = Faces().ask("POST", "/v2/jobs/run", body)
    assert asked.status == 404
    assert "echo" in asked.json["error"]


def test_source_that_comes_with_a_call_is_not_run():
    body = {"input": {"function_name": "echo", "function_code": "def echo(): pass"}}
    assert Faces().ask("POST", "/v2/jobs/run", body).status == 400


def test_a_full_queue_is_429():
    faces = Faces(backlog=1)
    faces.ask("POST", "/v2/m/run", {"input": 1})
    asked = faces.ask("POST", "/v2/m/run", {"input": 1})
    assert asked.status == 429
    assert read(asked, JobRefusal).code == "QUEUE_FULL"
    assert "retry-after" in asked.headers


def test_a_job_of_another_endpoint_is_not_shown():
    faces = Faces()
    job = faces.ask("POST", "/v2/m/run", {"input": 1}).json["id"]
    asked = faces.ask("GET", f"/v2/jobs/status/{job}")
    assert asked.status == 404
    assert faces.ask("GET", f"/v2/f/status/{job}").status == 200


def test_the_same_key_is_the_same_job():
    faces = Faces()
    key = {"Idempotency-Key": "k"}
    first = faces.ask("POST", "/v2/m/run", {"input": 1}, key)
    assert faces.ask("POST", "/v2/m/run", {"input": 1}, key).json == first.json
    assert faces.ask("POST", "/v2/m/run", {"input": 2}, key).status == 409
