"""Webhooks against a receiver on a real socket, with a real SQLite file."""

import asyncio
import contextlib
import json
import sqlite3
import time

import msgspec
import pytest
from api_fixtures import live_faces, served

from flashmesh.gateway import webhooks
from flashmesh.gateway.api.schemas import JobStatus
from flashmesh.gateway.webhooks import SCHEMA, Webhooks


class Receiver:
    """Answers each POST with the next of `statuses` (the last one for ever), and remembers what came."""

    def __init__(self, *statuses):
        self.statuses = list(statuses) or [200]
        self.came = []
        self.news = asyncio.Event()
        self.hold = None

    async def __call__(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.came.append((scope["path"], dict(scope["headers"]), body))
        self.news.set()
        if self.hold is not None:
            await self.hold.wait()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        headers = [(b"location", b"/elsewhere")] if 300 <= status < 400 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def until(self, count):
        async with asyncio.timeout(10):
            while len(self.came) < count:
                self.news.clear()
                await self.news.wait()


class File:
    """The part of the store's database that is used, on a real file."""

    def __init__(self, path):
        self.connection = sqlite3.connect(path)
        for statement in SCHEMA:
            self.connection.execute(statement)

    def write(self, sql, parameters, then=None):
        with self.connection:
            self.connection.execute(sql, parameters)
        if then is not None:
            then(None)

    def read(self, sql, parameters):
        return self.connection.execute(sql, parameters).fetchall()

    @property
    def rows(self):
        return self.read("SELECT execution, tries FROM webhooks", ())


@pytest.fixture
def file(tmp_path):
    made = File(tmp_path / "db")
    yield made
    made.connection.close()


async def idle(hooks):
    async with asyncio.timeout(10):
        while hooks.pending:  # noqa: ASYNC110 - ends with the last delivery
            await asyncio.sleep(0.001)


def run(main, *statuses, fails=False, **options):
    """`main(client, faces, receiver, url, hooks)`."""

    def body(worker, frame):
        if fails:
            worker.fail(frame, ValueError("no"))
        else:
            worker.succeed(frame, b'{"y":1}')

    async def go():
        faces = live_faces(body)
        receiver = Receiver(*statuses)
        hooks = Webhooks(**{"pauses_s": (0.001, 0.002), **options})
        faces.dispatcher.on_ended.append(hooks.ended)
        async with served(receiver) as hook_client, served(faces.application()) as client:
            url = f"{hook_client.base_url}".rstrip("/") + "/done"
            try:
                await main(client, faces, receiver, url, hooks)
            finally:
                await hooks.close()

    asyncio.run(go())


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_a_job_is_posted_as_its_status_failed_ones_too(fails):
    async def main(client, faces, receiver, url, hooks):
        job = (await client.post("/v2/m/run", json={"input": 1, "webhook": url})).json()["id"]
        await receiver.until(1)
        path, headers, body = receiver.came[0]
        told = msgspec.json.decode(body, type=JobStatus)
        assert (path, told.id) == ("/done", job)
        assert headers[b"content-type"] == b"application/json"
        assert told.status == ("FAILED" if fails else "COMPLETED")
        assert (told.error == "no") if fails else (told.output == {"y": 1})
        await idle(hooks)
        assert len(receiver.came) == 1

    run(main, fails=fails)


def test_a_job_without_webhook_posts_nothing():
    async def main(client, faces, receiver, url, hooks):
        await client.post("/v2/m/runsync", json={"input": 1})
        assert hooks.pending == 0

    run(main)


def test_runsync_with_a_webhook_posts_as_well():
    async def main(client, faces, receiver, url, hooks):
        await client.post("/v2/m/runsync", json={"input": 1, "webhook": url})
        await receiver.until(1)

    run(main)


def test_a_delivery_that_fails_is_tried_again_until_it_arrives(file):
    async def main(client, faces, receiver, url, hooks):
        await client.post("/v2/m/run", json={"input": 1, "webhook": url})
        await receiver.until(3)
        await idle(hooks)
        assert len(receiver.came) == 3
        assert file.rows == []

    run(main, 500, 503, 200, database=file)


def test_it_is_given_up_after_the_last_pause(file):
    async def main(client, faces, receiver, url, hooks):
        await client.post("/v2/m/run", json={"input": 1, "webhook": url})
        await receiver.until(3)
        await idle(hooks)
        assert len(receiver.came) == 3
        assert file.rows == []

    run(main, 500, database=file)


def test_redirects_are_not_followed():
    async def main(client, faces, receiver, url, hooks):
        await client.post("/v2/m/run", json={"input": 1, "webhook": url})
        await receiver.until(2)
        await idle(hooks)
        assert {path for path, _, _ in receiver.came} == {"/done"}

    run(main, 302, 200)


def test_an_address_that_does_not_answer_holds_nothing_up():
    async def main(client, faces, receiver, url, hooks):
        receiver.hold = asyncio.Event()
        await client.post("/v2/m/run", json={"input": 1, "webhook": url})
        await receiver.until(1)
        assert (await client.post("/v2/m/runsync", json={"input": 1})).json()["status"] == "COMPLETED"
        await receiver.until(3)
        receiver.hold.set()

    run(main, time_limit_s=0.05)


def test_an_address_where_nobody_listens_is_given_up_quietly():
    async def main(client, faces, receiver, url, hooks):
        await client.post("/v2/m/run", json={"input": 1, "webhook": "http://127.0.0.1:1/x"})
        await client.post("/v2/m/runsync", json={"input": 1})
        await idle(hooks)

    run(main)


def test_what_was_not_delivered_is_delivered_after_a_restart(file):
    async def main(client, faces, receiver, url, hooks):
        job = (await client.post("/v2/m/run", json={"input": 1, "webhook": url})).json()["id"]
        await receiver.until(1)
        await asyncio.wait_for(asyncio.gather(*hooks._tasks), 5)
        await hooks.close()
        assert file.rows == [(job, 1)]
        receiver.statuses = [200]
        later = Webhooks(database=file, now=lambda: time.time() + 3600)
        assert later.resume() == 1
        await receiver.until(2)
        await idle(later)
        assert json.loads(receiver.came[1][2])["id"] == job
        assert file.rows == []
        await later.close()

    run(main, 500, database=file, pauses_s=(3600.0,))


def test_a_delivery_waits_no_longer_though_the_clock_was_set_back(file):
    """What is kept over a restart is a moment of a clock; a pause is at most as long as it was to be."""

    async def main(client, faces, receiver, url, hooks):
        await client.post("/v2/m/run", json={"input": 1, "webhook": url})
        await receiver.until(1)
        await asyncio.wait_for(asyncio.gather(*hooks._tasks), 5)
        await hooks.close()
        receiver.statuses = [200]
        later = Webhooks(database=file, now=lambda: time.time() - 30 * 3600, pauses_s=(0.01,))
        later.resume()
        await receiver.until(2)
        await idle(later)
        assert file.rows == []
        await later.close()

    run(main, 500, database=file, pauses_s=(0.01, 3600.0))


def test_deliveries_under_way_together_are_bounded(monkeypatch):
    monkeypatch.setattr(webhooks, "MAX_AT_ONCE", 2)

    async def main(client, faces, receiver, url, hooks):
        receiver.hold = asyncio.Event()
        for n in range(6):
            await client.post("/v2/m/run", json={"input": n, "webhook": url})
        await receiver.until(2)
        assert len(receiver.came) == 2
        assert hooks.pending == 6
        receiver.hold.set()
        await receiver.until(6)
        await idle(hooks)

    run(main)


def test_the_oldest_of_too_many_is_dropped_and_forgotten(monkeypatch, file):
    monkeypatch.setattr(webhooks, "MAX_PENDING", 1)
    monkeypatch.setattr(webhooks, "MAX_AT_ONCE", 1)

    async def main(client, faces, receiver, url, hooks):
        receiver.hold = asyncio.Event()
        jobs = [(await client.post("/v2/m/run", json={"input": n, "webhook": url})).json()["id"] for n in range(3)]
        await receiver.until(1)
        for job in jobs:
            async with asyncio.timeout(5):
                while not faces.execution(job).ended:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        assert [row[0] for row in file.rows] == [jobs[0], jobs[2]]
        receiver.hold.set()
        with contextlib.suppress(TimeoutError):
            await receiver.until(2)
        await idle(hooks)

    run(main, database=file)
