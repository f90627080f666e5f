"""What calls over HTTP promise, whatever goes wrong around them: in virtual time."""

import pytest
from api_fixtures import Asked, Faces
from queueing_fixtures import VirtualClock

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.store import Retention
from flashmesh.gateway import calls
from flashmesh.gateway.api.executions import ExecutionHandlers
from flashmesh.gateway.http import Request
from flashmesh.queueing.dispatcher import CANCEL_GRACE_S


def send(handler, method, path):
    asked = Asked()
    handler(Request(method.encode(), path.encode(), b"", {}, b""), asked)
    return asked


def handlers(faces):
    return ExecutionHandlers(faces.calls, faces.shelf)


def failed(faces, worker, **options):
    accepted = faces.enqueue("f", {"x": 1}, **options).json["executionId"]
    worker.fail(worker.begin(), ValueError("first"))
    assert faces.execution(accepted).status == "ERROR"
    return accepted


def test_a_retry_runs_the_same_request_as_a_new_execution_that_names_the_old_one():
    faces = Faces()
    worker = faces.worker()
    old = failed(faces, worker, headers={"X-Trace-Id": "t"})
    asked = send(handlers(faces).retry, "POST", f"/v1/executions/{old}:retry")
    assert asked.status == 202
    new = asked.json["executionId"]
    assert new != old
    frame = worker.begin()
    assert (frame.execution, frame.payload) == (new, b'{"input": {"x": 1}}')
    worker.succeed(frame, b"2")
    shown = faces.ask("GET", f"/v1/executions/{new}").json
    assert (shown["output"], shown["retriedFrom"], shown["traceId"]) == (2, old, "t")
    assert faces.ask("GET", f"/v1/executions/{old}").json["status"] == "error"


def test_a_retry_is_not_taken_for_the_call_that_failed():
    """Retries were once dropped because they bore the key of the call that they repeat."""
    faces = Faces()
    worker = faces.worker()
    old = failed(faces, worker, headers={"Idempotency-Key": "k"})
    new = send(handlers(faces).retry, "POST", f"/v1/executions/{old}:retry").json["executionId"]
    assert worker.run_all() == 1
    assert faces.execution(new).status == "SUCCESS"
    assert faces.enqueue("f", {"x": 1}, headers={"Idempotency-Key": "k"}).json["executionId"] == old


def test_a_sync_call_that_failed_can_be_retried_too():
    faces = Faces()
    worker = faces.worker()
    old = faces.invoke("f", 1)
    worker.fail(worker.begin(), ValueError("first"))
    asked = send(handlers(faces).retry, "POST", f"/v1/executions/{old.json['executionId']}:retry")
    assert asked.status == 202


def test_what_has_not_ended_or_has_succeeded_is_not_retried():
    faces = Faces()
    worker = faces.worker()
    accepted = faces.enqueue("f", 1).json["executionId"]
    path = f"/v1/executions/{accepted}:retry"
    assert send(handlers(faces).retry, "POST", path).status == 409
    worker.run_all()
    asked = send(handlers(faces).retry, "POST", path)
    assert (asked.status, asked.json["error"]) == (409, "NOT_RETRIED")


def test_requests_of_failed_calls_make_room_with_their_results():
    clock = VirtualClock()
    faces = Faces(clock=clock, store=MemoryStore(now=clock.wall, retention=Retention(count=2)))
    worker = faces.worker()
    old = [failed(faces, worker) for _ in range(3)]
    statuses = [send(handlers(faces).retry, "POST", f"/v1/executions/{one}:retry").status for one in old]
    assert statuses == [404, 202, 202]


def test_a_retry_has_the_run_time_limit_of_the_call_that_failed():
    faces = Faces()
    worker = faces.worker()
    asked = faces.ask("POST", "/v2/m/run", {"input": 1, "policy": {"executionTimeout": 12_000}})
    old = asked.json["id"]
    worker.fail(worker.begin(), ValueError("first"))
    send(handlers(faces).retry, "POST", f"/v1/executions/{old}:retry")
    assert worker.begin().deadline_ms == 12_000


def test_a_refused_call_leaves_its_key_free():
    """A key that was claimed by a call that found the queue full once stayed claimed."""
    faces = Faces(queue_size=1)
    first = faces.invoke("f", 1)
    key = {"Idempotency-Key": "k"}
    assert faces.invoke("f", 2, headers=key).status == 429
    worker = faces.worker()
    worker.run_all()
    again = faces.invoke("f", 2, headers=key)
    worker.run_all()
    assert (first.status, again.status) == (200, 200)


def test_the_same_key_on_another_function_is_another_execution():
    faces = Faces()
    key = {"Idempotency-Key": "k"}
    one = faces.ask("POST", "/v1/functions/jobs.echo:enqueue", {"input": 1}, key)
    other = faces.ask("POST", "/v1/functions/other.echo:enqueue", {"input": 1}, key)
    assert one.json["executionId"] != other.json["executionId"]


def test_a_keyed_call_whose_worker_dies_runs_again_and_answers_all_who_asked():
    faces = Faces()
    worker = faces.worker()
    key = {"Idempotency-Key": "k"}
    asked = [faces.invoke("f", 1, headers=key) for _ in range(3)]
    worker.begin()
    faces.dispatcher.worker_lost(worker.worker)
    faces.clock.advance(5.0)
    other = faces.worker()
    assert other.run_all() == 1
    assert [one.status for one in asked] == [200, 200, 200]


def test_a_call_without_key_whose_worker_dies_is_a_500_that_says_so():
    faces = Faces()
    worker = faces.worker()
    asked = faces.invoke("f", 1)
    worker.begin()
    faces.dispatcher.worker_lost(worker.worker)
    faces.clock.advance(1.0)
    assert (asked.status, asked.json["error"]["code"]) == (500, "WORKER_LOST")


def test_never_more_calls_wait_than_the_queue_takes():
    faces = Faces(queue_size=5)
    asked = [faces.invoke("f", n) for n in range(20)]
    assert [one.waiting for one in asked] == [True] * 5 + [False] * 15
    assert {one.status for one in asked[5:]} == {429}


def test_a_function_that_is_withdrawn_fails_what_waits_and_finishes_what_runs():
    faces = Faces()
    worker = faces.worker()
    running, waiting = faces.invoke("f", 1), faces.invoke("f", 2)
    frame = worker.begin()
    faces.dispatcher.withdraw(faces.shelf.endpoints["m"][0].endpoint)
    assert waiting.status == 503
    worker.succeed(frame, b"1")
    assert running.status == 200


def test_the_answer_of_a_call_that_ended_before_submit_returned_is_given_once():
    faces = Faces()
    worker = faces.worker()
    key = {"Idempotency-Key": "k"}
    faces.invoke("f", 1, headers=key)
    worker.run_all()
    replay = faces.invoke("f", 1, headers=key)
    assert replay.status == 200
    faces.clock.advance(100.0)
    assert len(replay.answers) == 1


def test_a_cancel_of_what_does_not_stop_says_where_it_stands():
    faces = Faces()
    worker = faces.worker()
    accepted = faces.enqueue("f", 1).json["executionId"]
    worker.begin()
    asked = send(handlers(faces).cancel, "DELETE", f"/v1/executions/{accepted}")
    assert asked.waiting
    faces.clock.advance(calls.CANCEL_WAIT_S + 0.1)
    assert asked.json["status"] == "running"
    faces.clock.advance(CANCEL_GRACE_S)
    assert faces.execution(accepted).status == "CANCELLED"
    assert len(asked.answers) == 1


def test_time_limits_of_jobs_are_armed_again_after_a_restart():
    faces = Faces()
    job = faces.ask("POST", "/v2/m/run", {"input": 1, "policy": {"ttl": 10_000}}).json["id"]
    faces.clock.advance(4.0)
    restarted = Faces(clock=faces.clock)
    old = faces.execution(job)
    restarted.store.create(old)
    restarted.dispatcher.restore([old])
    restarted.calls.resume([old])
    restarted.clock.advance(5.9)
    assert not old.ended
    restarted.clock.advance(0.2)
    assert old.status == "CANCELLED"


def test_time_limits_of_jobs_are_no_longer_though_the_clock_was_set_back():
    faces = Faces()
    job = faces.ask("POST", "/v2/m/run", {"input": 1, "policy": {"ttl": 10_000}}).json["id"]
    old = faces.execution(job)
    old.created_at += 30 * 3600
    restarted = Faces(clock=faces.clock)
    restarted.store.create(old)
    restarted.dispatcher.restore([old])
    restarted.calls.resume([old])
    restarted.clock.advance(10.1)
    assert old.status == "CANCELLED"


def test_a_replay_of_a_job_keeps_the_time_limit_of_the_first():
    faces = Faces()
    key = {"Idempotency-Key": "k"}
    body = {"input": 1, "policy": {"ttl": 10_000}}
    faces.ask("POST", "/v2/m/run", body, key)
    before = faces.clock.pending
    faces.ask("POST", "/v2/m/run", body, key)
    assert faces.clock.pending == before


@pytest.mark.parametrize("ended", ["SUCCESS", "ERROR"])
def test_a_final_state_never_changes(ended):
    faces = Faces()
    worker = faces.worker()
    accepted = faces.enqueue("f", 1).json["executionId"]
    frame = worker.begin()
    if ended == "SUCCESS":
        worker.succeed(frame)
    else:
        worker.fail(frame, ValueError("no"))
    send(handlers(faces).cancel, "DELETE", f"/v1/executions/{accepted}")
    assert faces.execution(accepted).status == ended
