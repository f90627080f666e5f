"""Bad input and faults in a real `flash run`: each ends in an answer that says what to do, and nothing else stops."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from session_fixtures import Served, serving, until, write_project

CALLS = """\
import os, signal, time
from pathlib import Path
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="calls", workersMax=1)
here = Path(__file__).parent


@remote(cpu)
def typed(count: int, name: str = "x") -> str:
    return name * count


@remote(cpu)
def pid() -> int:
    return os.getpid()


@remote(cpu, execution_timeout_ms=200)
def limited() -> None:
    while True:
        time.sleep(0.01)


@remote(cpu, execution_timeout_ms=200)
def stubborn() -> None:
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass


@remote(cpu)
def endless(mark: str) -> None:
    (here / mark).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@remote(cpu)
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@remote(cpu, retries=1)
def killed_once(mark: str) -> str:
    if not (here / mark).exists():
        (here / mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "the second attempt"


@remote(cpu, retries=2, retry_on=(ConnectionError,))
def unlucky(mark: str, kind: str) -> int:
    with (here / mark).open("a") as file:
        file.write("x")
    raise ConnectionError("away") if kind == "connection" else ValueError("wrong")


@remote(cpu)
def odd() -> object:
    return {"inner": [object()]}


@remote(cpu)
def nan() -> dict:
    return {"a": [1.0, float("nan")]}


@remote(cpu)
def items(n: int):
    for number in range(n):
        yield {"number": number}


@remote(cpu)
async def items_async(n: int):
    for number in range(n):
        yield number
    raise ValueError("no more")


@remote(cpu)
def leaves() -> None:
    raise SystemExit(3)
"""

MANY = """\
import os
from flashmesh import CpuLiveServerless, remote


@remote(CpuLiveServerless(name="many", workersMax=3))
def where(number: int) -> list[int]:
    return [number, os.getpid()]
"""

OWN = """\
import asyncio, os
from flashmesh import CpuLiveServerless, remote

running = most = 0


@remote(CpuLiveServerless(name="job"), mode="JOB")
def job() -> int:
    return os.getpid()


@remote(CpuLiveServerless(name="together", workersMax=1), max_concurrency=20)
async def together(number: int) -> int:
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.05)
    running -= 1
    return most
"""

NESTED = """\
from calls import limited
from flashmesh import CpuLiveServerless, remote


@remote(CpuLiveServerless(name="nested"))
async def outer() -> None:
    await limited()
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = tmp_path_factory.mktemp("faults")
    root = write_project(base / "shop", calls=CALLS, many=MANY, nested=NESTED, own=OWN)
    limits = {"FLASH_MAX_BODY_BYTES": "100000", "FLASH_HOME": str(base / "home")}
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))  # what a shell gives
    with serving(root, env=limits) as session:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))  # our end of the connections
        yield session


# --- requests ---


@pytest.mark.parametrize(
    "body",
    [
        {"input": {"count": 2, "name": "ab"}},
        {"count": 2, "name": "ab"},
        {"input": {"count": 2, "name": "ab"}, "webhook": "http://nowhere.example/"},
    ],
    ids=["envelope", "bare", "with RunPod's other keys"],
)
def test_a_body_reaches_the_arguments_in_every_form(served: Served, body: Any) -> None:
    for verb in ("run_sync", "runsync", "run"):
        status, answer = served.post(f"/calls/typed/{verb}", body)
        assert (status, answer["status"], answer["output"]) == (200, "COMPLETED", "abab"), answer


def test_run_answers_with_an_id_when_the_function_takes_longer_than_a_short_wait(served: Served) -> None:
    status, job = served.post("/calls/endless/run", {"mark": "long"})
    assert (status, job["status"]) == (200, "IN_PROGRESS")
    assert served.post(f"/calls/endless/cancel/{job['id']}")[0] == 200
    until(lambda: served.get(f"/calls/endless/status/{job['id']}")[1]["status"] == "CANCELLED")


def test_malformed_json_is_400(served: Served) -> None:
    """The answer says where the syntax breaks; nothing was run."""
    for body in (b"{not json", b'{"count": 1,}', b"\xff\xfe", b'{"a": 1} trailing'):
        status, answer = served.post("/calls/typed/run_sync", body)
        assert (status, answer["code"]) == (400, "MALFORMED_REQUEST"), answer


def test_malformed_json_is_refused_before_a_job_is_accepted(served: Served) -> None:
    status, answer = served.post("/calls/typed/run", b"[1, 2")
    assert (status, answer["code"]) == (400, "MALFORMED_REQUEST"), answer


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "count"),
        ({"name": "x"}, "count"),
        ({"count": "many"}, "count"),
        ({"input": {"count": None}}, "count"),
        ({"count": 1, "name": 5}, "name"),
        ({"count": 1, "nam": "y"}, "name"),
        (b'{"count": NaN}', "count"),
    ],
)
def test_a_missing_or_mistyped_argument_is_422_and_is_named(served: Served, body: Any, named: str) -> None:
    status, answer = served.post("/calls/typed/run_sync", body)
    assert status == 422, answer
    assert named in answer["error"] and answer["code"] == "VALIDATION_ERROR", answer


def test_an_unknown_route_is_404_with_the_nearest(served: Served) -> None:
    status, answer = served.post("/mani/run_sync")
    assert (status, answer["nearest"]) == (404, "POST /many/run_sync"), answer
    status, answer = served.post("/calls/tiped/run_sync")
    assert status == 404 and "typed" in answer["error"], answer
    status, answer = served.get("/calls/typed/run_sync")
    assert status == 405 and "POST" in answer["error"], answer
    status, answer = served.get("/calls/typed/status/nobody")
    assert status == 404 and answer["code"] == "EXECUTION_NOT_FOUND", answer


def test_a_body_over_the_limit_is_413_and_says_the_limit(served: Served) -> None:
    status, answer = served.post("/calls/typed/run_sync", {"count": 1, "name": "x" * 200_000})
    assert (status, answer["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "100000" in answer["error"].replace(",", "").replace(" ", "")


# --- limits of time ---


def test_a_function_past_its_time_limit_is_timeout_and_the_endpoint_goes_on(served: Served) -> None:
    status, answer = served.post("/calls/limited/run_sync")
    assert (status, answer["code"], answer["status"]) == (504, "TIMEOUT", "TIMED_OUT"), answer
    assert served.post("/calls/typed/run_sync", {"count": 2})[1]["output"] == "xx"


def test_a_function_that_ignores_its_time_limit_loses_its_worker(served: Served) -> None:
    """Two seconds after the exception the process is killed, and another takes its place."""
    before = served.post("/calls/pid/run_sync")[1]["output"]
    status, answer = served.post("/calls/stubborn/run_sync")
    assert (status, answer["code"]) == (504, "TIMEOUT"), answer
    after = served.post("/calls/pid/run_sync")[1]["output"]
    assert after != before
    until(lambda: not Path(f"/proc/{before}").exists())


def test_a_time_limit_of_a_called_function_is_an_exception_of_the_caller(served: Served) -> None:
    """It is not reported as the outer call's own."""
    status, answer = served.post("/nested/run_sync")
    assert (status, answer["code"], answer["error_type"]) == (500, "USER_ERROR", "TimedOut"), answer


def test_without_a_limit_only_the_wait_ends_and_cancel_frees_the_worker(served: Served) -> None:
    status, answer = served.post("/calls/endless/run_sync?wait=1000", {"mark": "endless"})
    assert (status, answer["status"]) == (200, "IN_PROGRESS")
    id = answer["id"]
    assert served.get(f"/calls/endless/status/{id}")[1]["status"] == "IN_PROGRESS"
    status, answer = served.post(f"/calls/endless/cancel/{id}")
    assert status == 200
    until(lambda: served.get(f"/calls/endless/status/{id}")[1]["status"] == "CANCELLED")
    assert served.post("/calls/typed/run_sync", {"count": 1})[1]["output"] == "x"


# --- workers that die ---


def test_a_worker_killed_mid_call_fails_that_call_with_a_clear_error(served: Served) -> None:
    """The call that waits for it is told; the next one runs on a fresh worker."""
    _, answer = served.post("/calls/endless/run_sync?wait=1000", {"mark": "victim"})
    victim = int((served.root / "victim").read_text())
    os.kill(victim, signal.SIGKILL)
    url = f"/calls/endless/status/{answer['id']}"
    until(lambda: served.get(url)[1]["status"] == "FAILED", explain=served.output)
    assert "signal 9" in served.get(url)[1]["error"]
    status, failed = served.post("/calls/killed/run_sync")
    assert (status, failed["code"]) == (500, "WORKER_LOST"), failed
    assert "signal 9" in failed["error"] and "retries=" in failed["error"]
    assert served.post("/calls/typed/run_sync", {"count": 3})[1]["output"] == "xxx"


def test_a_call_is_repeated_on_another_worker_when_its_function_allows_it(served: Served) -> None:
    status, answer = served.post("/calls/killed_once/run_sync", {"mark": "once"})
    assert (status, answer.get("output")) == (200, "the second attempt"), answer


def test_retry_on_decides_which_exceptions_are_retried(served: Served) -> None:
    for kind, attempts in (("connection", 3), ("value", 1)):
        status, _ = served.post("/calls/unlucky/run_sync", {"mark": kind, "kind": kind})
        assert status == 500
        assert len((served.root / kind).read_text()) == attempts


# --- results ---


def test_a_result_that_cannot_be_encoded_names_its_type_and_place(served: Served) -> None:
    status, answer = served.post("/calls/odd/run_sync")
    assert status == 500 and answer["code"] == "NOT_ENCODABLE", answer
    assert "object" in answer["error"] and "inner" in answer["error"]
    status, answer = served.post("/calls/nan/run_sync")
    assert status == 500 and "a[1]" in answer["error"].replace(".", ""), answer


def test_leaving_the_interpreter_is_a_failure_of_that_call_only(served: Served) -> None:
    before = served.post("/calls/pid/run_sync")[1]["output"]
    status, answer = served.post("/calls/leaves/run_sync")
    assert status == 500 and "sys.exit(3)" in answer["error"]
    assert served.post("/calls/pid/run_sync")[1]["output"] == before


# --- settings of one function ---


def test_a_function_in_job_mode_gets_a_fresh_process_for_each_call(served: Served) -> None:
    pids = [served.post("/own/job/run_sync")[1]["output"] for _ in range(4)]
    assert len(set(pids)) == 4
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_an_asynchronous_function_runs_as_many_calls_at_once_as_it_declares(served: Served) -> None:
    answers = asyncio.run(ask_often(served.url, "/own/together/run_sync", 60))
    seen = [json.loads(body)["output"] for _, _, body in answers]
    assert 2 <= max(seen) <= 20


# --- streams ---


def test_a_generator_answers_the_list_of_its_items(served: Served) -> None:
    status, answer = served.post("/calls/items/run_sync", {"n": 2})
    assert (status, answer["output"]) == (200, [{"number": 0}, {"number": 1}])


def test_a_generators_items_are_read_once_by_stream(served: Served) -> None:
    """`/stream` gives what has come since the last time, until the status is final."""
    _, job = served.post("/calls/items/run", {"n": 100})
    got: list[Any] = []
    while True:
        status, answer = served.get(f"/calls/items/stream/{job['id']}")
        assert status == 200, answer
        got += [entry["output"]["number"] for entry in answer["stream"]]
        if answer["status"] == "COMPLETED" and not answer["stream"]:
            break
        assert len(got) <= 100
    assert got == list(range(100))


def test_a_generator_streams_as_server_sent_events(served: Served) -> None:
    request = urllib.request.Request(
        served.url + "/calls/items/run_sync",
        b'{"n": 3}',
        {"Content-Type": "application/json", "Accept": "text/event-stream"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert [event for event in events if event.startswith("data: ")] == [f'data: {{"number":{n}}}' for n in range(3)]


def test_a_stream_that_fails_says_so_after_its_items(served: Served) -> None:
    request = urllib.request.Request(
        served.url + "/calls/items_async/run_sync",
        b'{"n": 2}',
        {"Content-Type": "application/json", "Accept": "text/event-stream"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read().decode()
    assert text.index("data: 0") < text.index("data: 1") < text.index("no more")
    assert "event: error" in text


# --- crowds ---


async def ask_often(url: str, path: str, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """`count` POSTs at once, each over a connection of its own."""
    host, port = url.removeprefix("http://").split(":")

    async def one(number: int) -> tuple[int, dict[str, str], bytes]:
        body = b'{"number": %d}' % number
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            answer = await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        lines = head_bytes.decode().split("\r\n")
        headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines[1:])}
        return int(lines[0].split()[1]), headers, content

    return await asyncio.gather(*(one(number) for number in range(count)))


def test_500_concurrent_calls_of_one_synchronous_function_all_answer(served: Served) -> None:
    answers = asyncio.run(ask_often(served.url, "/many/run_sync", 500))
    assert Counter(status for status, _, _ in answers) == {200: 500}
    for number, (_, _, body) in enumerate(answers):
        assert f'"output":[{number},'.encode() in body


def test_5000_concurrent_calls_are_answered_or_told_when_to_come_back(served: Served) -> None:
    """Never more workers than the endpoint may have, and the next call works."""
    answers = asyncio.run(ask_often(served.url, "/many/run_sync", 5000))
    counted = Counter(status for status, _, _ in answers)
    assert counted.keys() <= {200, 429} and counted[200] >= 1000, counted
    for status, headers, _ in answers:
        assert status == 200 or int(headers["retry-after"]) >= 1
    pids = {body.rpartition(b",")[2] for status, _, body in answers if status == 200}
    assert len(pids) <= 3
    assert served.post("/many/run_sync", {"number": 1})[0] == 200
