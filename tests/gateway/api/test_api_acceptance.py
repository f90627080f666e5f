"""What is accepted for later is answered only when the store has it, in virtual time; and who may ask for what."""

import dataclasses

import pytest
from api_fixtures import Faces
from queueing_fixtures import VirtualClock

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.store import StoreUnavailable
from flashmesh.gateway.access.scopes import required_scope
from flashmesh.gateway.api.operations import METRICS, OPERATIONS


class Disk(MemoryStore):
    """Durable only when told: `commit`, or `fail` as on a full disk, which undoes what was created."""

    def __init__(self, clock):
        super().__init__(now=clock.wall)
        self.waiting = []
        self.full = False

    def create(self, execution):
        if self.full and execution.kind == "async":
            raise StoreUnavailable(retry_after=2.0)
        return super().create(execution)

    def when_durable(self, then):
        self.waiting.append(then)

    def commit(self, error=None):
        waiting, self.waiting = self.waiting, []
        for then in waiting:
            then(error)


def faces_on_disk():
    clock = VirtualClock()
    disk = Disk(clock)
    return Faces(clock=clock, store=disk), disk


PATHS = ["/v1/functions/m.f:enqueue", "/v2/m/run"]


@pytest.mark.parametrize("path", PATHS)
def test_it_is_answered_after_the_commit_and_not_before(path):
    faces, disk = faces_on_disk()
    asked = faces.ask("POST", path, {"input": 1})
    assert asked.waiting
    disk.commit()
    assert asked.status in (200, 202)


@pytest.mark.parametrize("path", PATHS)
def test_a_disk_that_is_full_at_the_commit_refuses_with_503(path):
    faces, disk = faces_on_disk()
    asked = faces.ask("POST", path, {"input": 1})
    disk.commit(StoreUnavailable("the disk is full"))
    assert asked.status == 503
    assert "disk is full" in asked.answer.body.decode()
    assert "retry-after" in asked.headers
    assert faces.dispatcher.unfinished() == []


@pytest.mark.parametrize("path", PATHS)
def test_a_disk_that_is_known_to_be_full_refuses_at_once_and_recovers(path):
    faces, disk = faces_on_disk()
    disk.full = True
    asked = faces.ask("POST", path, {"input": 1})
    assert (asked.status, asked.headers["retry-after"]) == (503, "2")
    disk.full = False
    asked = faces.ask("POST", path, {"input": 1})
    disk.commit()
    assert asked.status in (200, 202)


def test_a_replay_waits_for_the_first_calls_commit():
    faces, disk = faces_on_disk()
    key = {"Idempotency-Key": "k"}
    first, second = faces.enqueue("f", 1, headers=key), faces.enqueue("f", 1, headers=key)
    assert (first.waiting, second.waiting) == (True, True)
    disk.commit()
    assert first.json["executionId"] == second.json["executionId"]


def test_a_function_may_allow_longer_waits_than_others():
    faces = Faces()
    callee = dataclasses.replace(faces.shelf.endpoints["m"][0], max_wait_ms=600_000, wait_ms=2_000)
    faces.shelf.endpoints["m"] = (callee,)
    faces.shelf.version += 1
    assert faces.invoke("m.f", headers={"X-Timeout-Ms": "600000"}).waiting
    assert faces.invoke("m.f", headers={"X-Timeout-Ms": "600001"}).status == 400
    short = faces.invoke("m.f")
    faces.clock.advance(2.1)
    assert short.status == 408


SAMPLE = {"name": "m.f", "endpoint": "m", "function": "f", "executionId": "e1", "id": "e1", "file": "x.css"}
ADMIN = {"create_function", "patch_function", "delete_function", "set_replicas"}


@pytest.mark.parametrize("operation", [*OPERATIONS, METRICS], ids=lambda operation: operation.id)
def test_each_route_needs_the_scope_of_its_kind(operation):
    scope = required_scope(operation.method, operation.path.format(**SAMPLE))
    if operation.id in ("get_healthz", "get_readyz"):
        assert scope is None
    elif operation.id in ADMIN:
        assert scope == "admin"
    elif operation.id == "get_metrics":
        assert scope == "metrics"
    else:
        assert scope == "call"
