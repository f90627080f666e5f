"""Functions that are commands on this machine: real processes over HTTP, stdin and files, and how they die."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from external_fixtures import PYTHON, Bench, Settings, play, python, refused, until

from flashmesh.kit.ids import ExecutionId
from flashmesh.wire.frames import BINARY, Error

HTTP_ECHO = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        value = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        if value == "die": os.kill(os.getpid(), 9)
        if value == "exit": os._exit(3)
        if value == "hang": time.sleep(600)
        if value == "pid": value = os.getpid()
        if value == "env": value = dict(os.environ)
        if value == "say": print("said", flush=True)
        body = json.dumps(value).encode()
        self.send_response(200); self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *args): pass
class Server(ThreadingHTTPServer):
    def handle_error(self, *args): pass
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

STDIO_ECHO = """
import json, os, sys, time
for line in sys.stdin:
    value = json.loads(line)["input"]
    if value == "hang": time.sleep(600)
    if value == "exit": sys.exit(3)
    if value == "garbage": print("Traceback (most recent call last)"); continue
    if value == "twice": sys.stdout.write("1\\n2\\n"); continue
    if value == "error": print(json.dumps({"error": "no such cat"})); continue
    if value == "endless":
        while True: sys.stdout.write("x" * 65536)
    if value == "big": value = "y" * (40 * 1024 * 1024)
    if value == "pid": value = os.getpid()
    if value == "say": print("said", file=sys.stderr)
    print(json.dumps(value))
"""

FILE_UPPER = """
import json, os, sys
value = json.load(open(os.environ["INPUT_FILE"]))["input"]
if value == "fail": print("it broke", file=sys.stderr); sys.exit(4)
if value == "die": os.kill(os.getpid(), 9)
if value == "hang":
    import time; time.sleep(600)
if value == "nothing": sys.exit(0)
with open(os.environ["OUTPUT_FILE"], "wb") as out:
    if value == "text": out.write(b"plain words")
    elif value == "bytes": out.write(bytes([255, 0, 1]))
    elif value == "env": out.write(json.dumps(dict(os.environ)).encode())
    else: out.write(json.dumps(value).encode())
"""


def alive(pid: int) -> bool:
    """Running, and not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_command_is_started_by_its_first_call_and_answers_over_http() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(HTTP_ECHO), env={"GREETING": "hi"})
        assert bench.endpoint()["workers"] == 0
        pid = await bench.call("f", "pid").output()
        assert bench.pids() == [pid]
        assert [await bench.call("f", n).output() for n in range(20)] == list(range(20))
        assert await bench.call("f", "pid").output() == pid
        env = await bench.call("f", "env").output()
        assert (env["FUNCTION_NAME"], env["GREETING"]) == ("f", "hi")
        assert os.getpgid(pid) == pid, "a process group of its own"
        await bench.call("f", "say").output()
        await until(lambda: "said" in bench.texts("stdout"))
        assert {line.function for line in bench.lines} == {"f"}

    play(scenario)


def test_a_commands_environment_has_none_of_the_servers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "secret")
    monkeypatch.setenv("FLASH_TOKEN", "secret")

    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(HTTP_ECHO))
        env = await bench.call("f", "env").output()
        assert "secret" not in env.values()
        assert "PATH" in env

    play(scenario)


def test_killing_the_process_mid_call_loses_a_sync_call_and_repeats_an_async_one(tmp_path: Path) -> None:
    program = HTTP_ECHO.replace(
        'if value == "die":', f'if value == "once" and not os.path.exists("{tmp_path}/x"): open("{tmp_path}/x", "w"); '
        "time.sleep(600)\n        if value == \"die\":"
    )  # fmt: skip

    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(program))
        call = bench.call("f", "hang")
        await call.started.wait()
        os.kill(bench.pids()[0], signal.SIGKILL)
        code, message = await call.error()
        assert code == "WORKER_LOST"
        assert "signal 9" in message
        waiting = bench.call("f", "once", kind="async")
        await until(lambda: (tmp_path / "x").exists())
        os.kill(bench.pids()[0], signal.SIGKILL)
        assert await waiting.output() == "once"
        assert bench.dispatcher.execution(ExecutionId(waiting.execution)).attempt == 2

    play(scenario)


def test_a_call_that_hangs_past_its_limit_takes_its_process_along_and_another_one_serves() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(HTTP_ECHO), timeoutMs=15_000)
        first = await bench.call("f", "pid").output()
        assert (await bench.call("f", "hang", deadline_ms=300).error())[0] == "TIMEOUT"
        assert await bench.call("f", "pid").output() != first
        await until(lambda: not alive(first))

    play(scenario)


def test_other_calls_in_a_process_that_has_to_go_may_finish() -> None:
    slow = HTTP_ECHO.replace('if value == "die":', 'if value == "slow": time.sleep(0.7)\n        if value == "die":')

    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(slow))
        await bench.call("f", 1).output()
        hanging, other = bench.call("f", "hang", deadline_ms=200), bench.call("f", "slow")
        assert (await hanging.error())[0] == "TIMEOUT"
        assert await other.output() == "slow"

    play(scenario)


def test_cancelling_ends_the_process_that_runs_the_call() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO")
        call = bench.call("f", "hang")
        await call.started.wait()
        pid = bench.pids()[0]
        bench.dispatcher.cancel(ExecutionId(call.execution))
        assert (await call.error())[0] == "CANCELLED"
        await until(lambda: not alive(pid))
        assert await bench.call("f", 1).output() == 1

    play(scenario)


def test_a_command_that_never_listens_fails_its_calls_with_the_reason() -> None:
    async def scenario(bench: Bench) -> None:
        bench.registry.posted._around = dataclasses.replace(bench.registry.posted._around, ready_s=0.2)
        await bench.create(command=python("import time; print('here', flush=True); time.sleep(600)"))
        code, message = await bench.call().error()
        assert code == "ENDPOINT_UNAVAILABLE"
        assert "did not listen on $PORT" in message
        assert "here" in bench.texts()

    play(scenario)


@pytest.mark.parametrize(
    ("command", "part"),
    [(["/nonexistent/program"], "No such file"), (python("import sys; sys.exit(7)"), "exit status 7")],
)
def test_a_command_that_cannot_start_fails_its_calls_with_the_reason(command: list[str], part: str) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=command)
        code, message = await bench.call().error()
        assert code == "ENDPOINT_UNAVAILABLE"
        assert part in message

    play(scenario)


def test_a_process_on_stdin_answers_line_by_line_and_stays() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO", concurrency=1)
        pid = await bench.call("f", "pid").output()
        for value in ({"a": [1, "ü\n"]}, None, "x" * 300_000, -1.5):
            assert await bench.call("f", value).output() == value
        assert await bench.call(payload=b'{\n  "input":\r\n 5}').output() == 5
        assert await bench.call("f", "error").error() == ("EXTERNAL_ERROR", "no such cat")
        assert (await bench.call(payload=b"\0\1", content_type=BINARY).error())[0] == "VALIDATION_ERROR"
        assert await bench.call("f", "pid").output() == pid
        call = bench.call("f", "say")
        await call.output()
        await until(lambda: "said" in bench.texts("stderr"))

    play(scenario)


def test_as_many_processes_read_stdin_as_calls_run_at_a_time() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO", concurrency=3)
        calls = [bench.call("f", "hang", deadline_ms=3000) for _ in range(5)]
        await until(lambda: bench.endpoint()["workers"] == 3)
        assert len(set(bench.pids())) == 3
        for call in calls:
            bench.dispatcher.cancel(ExecutionId(call.execution))

    play(scenario)


@pytest.mark.parametrize("value", ["garbage", "twice"])
def test_a_process_that_prints_what_is_no_answer_is_started_anew(value: str) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO", concurrency=1)
        pid = await bench.call("f", "pid").output()
        frame = await bench.call("f", value).end()
        if value == "garbage":
            assert isinstance(frame, Error)
            assert frame.code == "EXTERNAL_ERROR"
        assert [await bench.call("f", n).output() for n in range(5)] == list(range(5))
        assert await bench.call("f", "pid").output() != pid
        await until(lambda: any("started anew" in text for text in bench.texts("system")))

    play(scenario)


def test_a_process_that_ends_during_a_call_loses_it() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO", concurrency=1)
        code, message = await bench.call("f", "exit").error()
        assert code == "WORKER_LOST"
        assert "exit status 3" in message
        assert await bench.call("f", 1).output() == 1

    play(scenario)


def test_lines_of_megabytes_pass_and_an_endless_one_ends_its_process() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO", concurrency=1)
        assert len(await bench.call("f", "big").output()) == 40 * 1024 * 1024
        assert (await bench.call("f", "endless").error())[0] == "PAYLOAD_TOO_LARGE"
        assert await bench.call("f", 1).output() == 1

    play(scenario)


def test_one_answer_per_process_is_taken_even_when_it_ends_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        code = "import sys; print(len(sys.stdin.readline()), end='')"
        await bench.create(command=python(code), runtimeMode="STDIO", concurrency=1)
        for _ in range(3):
            assert await bench.call("f", "x").output() == 14
            await until(lambda: bench.endpoint()["workers"] == 0)

    play(scenario)


def test_a_file_function_gets_a_process_for_each_call(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(FILE_UPPER), runtimeMode="FILE")
        assert await bench.call("f", {"a": 1}).output() == {"a": 1}
        assert await bench.call("f", "text").output() == "plain words"
        assert await bench.call("f", "bytes").output() == b"\xff\x00\x01"
        assert await bench.call("f", "nothing").output() is None
        big = "z" * 1_000_000
        assert await bench.call("f", big).output() == big
        call = bench.call("f", "env", trace="abc")
        env = await call.output()
        assert (env["EXECUTION_ID"], env["FUNCTION_NAME"], env["TRACE_ID"]) == (call.execution, "f", "abc")
        failing = bench.call("f", "fail")
        code, message = await failing.error()
        assert code == "EXTERNAL_ERROR"
        assert "exit status 4" in message
        await until(lambda: "it broke" in bench.texts("stderr"))
        assert next(line for line in bench.lines if line.text == "it broke").execution == failing.execution
        assert (await bench.call("f", "die").error())[0] == "WORKER_LOST"
        assert (await bench.call("f", "hang", deadline_ms=300).error())[0] == "TIMEOUT"
        await until(lambda: not list(tmp_path.iterdir()), "its files are gone")

    play(scenario, scratch=tmp_path)


def test_a_job_on_stdin_is_a_process_for_each_call() -> None:
    async def scenario(bench: Bench) -> None:
        code = "import sys, json, os; print(json.dumps([json.load(sys.stdin)['input'], os.getpid()]))"
        await bench.create(command=python(code), runtimeMode="STDIO", executionMode="JOB")
        first, second = await bench.call("f", 1).output(), await bench.call("f", 2).output()
        assert (first[0], second[0]) == (1, 2)
        assert first[1] != second[1]

    play(scenario)


def test_idle_processes_leave_and_the_next_call_starts_one() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(
            command=python(STDIO_ECHO), runtimeMode="STDIO", scalingConfig={"idleTimeoutMs": 50, "maxReplicas": 2}
        )
        pid = await bench.call("f", "pid").output()
        await until(lambda: not alive(pid) and bench.endpoint()["workers"] == 0)
        assert await bench.call("f", "pid").output() != pid

    play(scenario)


def test_the_smallest_number_of_processes_is_kept_whatever_happens_to_them() -> None:
    async def scenario(bench: Bench) -> None:
        scaling = {"minReplicas": 2, "maxReplicas": 3, "idleTimeoutMs": 20}
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO", scalingConfig=scaling)
        await until(lambda: bench.endpoint()["workers"] == 2)
        assert await bench.registry.replicas("f") == {"name": "f", "desiredReplicas": 2, "readyReplicas": 2}
        before = set(bench.pids())
        os.kill(next(iter(before)), signal.SIGKILL)
        await until(lambda: len(set(bench.pids()) - before) == 1)
        assert await bench.registry.set_replicas("f", 1) == {"function": "f", "replicas": 1}
        await until(lambda: bench.endpoint()["workers"] == 1)
        await bench.registry.set_replicas("f", 0)
        await until(lambda: bench.endpoint()["workers"] == 0)
        assert await bench.call("f", 1).output() == 1

    play(scenario)


def test_removing_a_command_ends_its_processes_after_their_calls() -> None:
    async def scenario(bench: Bench) -> None:
        slow = STDIO_ECHO.replace('if value == "hang":', 'if value == "slow": time.sleep(0.5)\n    if value == "hang":')
        await bench.create(command=python(slow), runtimeMode="STDIO", concurrency=1)
        pid = await bench.call("f", "pid").output()
        running, waiting = bench.call("f", "slow"), bench.call("f", 2)
        await running.started.wait()
        await bench.registry.delete("f")
        assert (await waiting.error())[0] == "FUNCTION_REMOVED"
        assert await running.output() == "slow"
        await until(lambda: not alive(pid))

    play(scenario)


def test_what_a_command_left_running_ends_with_it() -> None:
    async def scenario(bench: Bench) -> None:
        code = "import subprocess,sys; p=subprocess.Popen(['sleep','9']); [print(p.pid, flush=True) for _ in sys.stdin]"
        await bench.create(command=python(code), runtimeMode="STDIO", concurrency=1)
        grandchild = await bench.call("f").output()
        assert alive(grandchild)
        await bench.registry.delete("f")
        await until(lambda: not alive(grandchild))

    play(scenario)


def test_what_a_process_left_running_ends_when_it_ends_by_itself() -> None:
    async def scenario(bench: Bench) -> None:
        code = (
            "import os,subprocess; p=subprocess.Popen(['sleep','99']); "
            "open(os.environ['OUTPUT_FILE'],'w').write(str(p.pid))"
        )
        await bench.create(command=python(code), runtimeMode="FILE")
        grandchild = await bench.call("f").output()
        await until(lambda: not alive(grandchild))

    play(scenario)


def test_a_string_command_is_split_like_a_shell_would_and_run_without_one() -> None:
    async def scenario(bench: Bench) -> None:
        code = "import sys; [print(repr(sys.argv[1:]).replace(chr(39), chr(34)), flush=True) for _ in sys.stdin]"
        await bench.create(command=f"{PYTHON} -c '{code}' 'a b' '$HOME;ls'", runtimeMode="STDIO")
        assert await bench.call().output() == ["a b", "$HOME;ls"]

    play(scenario)


def test_commands_need_permission_which_the_refusal_names() -> None:
    async def scenario(bench: Bench) -> None:
        error = await refused(bench.create(command=["true"]))
        assert (error.code, error.status) == ("COMMANDS_NOT_ALLOWED", 403)
        assert "--allow-commands" in str(error)

    play(scenario, settings=Settings(allow_commands=False))


SERVER = """
import asyncio, sys, uvloop
sys.path.insert(0, {here!r})
from external_fixtures import Bench, python
async def main():
    bench = Bench()
    await bench.create(command=python({code!r}), runtimeMode="STDIO", concurrency=1)
    print(await bench.call().output(), flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""


def test_commands_and_what_they_started_die_with_a_server_that_is_killed() -> None:
    code = (
        "import subprocess,os,sys; p=subprocess.Popen(['sleep','99']); "
        "[print([os.getpid(), p.pid], flush=True) for _ in sys.stdin]"
    )
    script = SERVER.format(here=str(Path(__file__).parent), code=code)

    async def wait_for(pids: list[Any]) -> None:
        await until(lambda: not any(alive(pid) for pid in pids))

    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = json.loads(server.stdout.readline())
        assert all(alive(pid) for pid in pids)
        server.kill()
    asyncio.run(wait_for(pids))


def test_when_the_starter_is_killed_calls_are_lost_and_the_next_ones_run() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO", concurrency=1)
        pid = await bench.call("f", "pid").output()
        call = bench.call("f", "hang")
        await call.started.wait()
        starter = bench.registry.posted._around.processes._starter_process
        assert starter is not None
        starter.kill()
        assert (await call.error())[0] == "WORKER_LOST"
        await until(lambda: not alive(pid))
        assert await bench.call("f", 1).output() == 1

    play(scenario)


@pytest.mark.parametrize("mode", ["STDIO", "HTTP"])
def test_every_call_ends_once_with_its_own_answer_while_processes_are_killed(mode: str) -> None:
    async def scenario(bench: Bench) -> None:
        code = STDIO_ECHO if mode == "STDIO" else HTTP_ECHO
        scaling = {"minReplicas": 2, "maxReplicas": 2}
        await bench.create(command=python(code), runtimeMode=mode, concurrency=4, scalingConfig=scaling)
        calls = [bench.call("f", number, kind="async") for number in range(300)]
        for left in (250, 150, 50):
            await until(lambda left=left: bench.endpoint()["workers"] and sum(not call.ended for call in calls) <= left)
            for pid in bench.pids():
                os.kill(pid, signal.SIGKILL)
        ends = [await call.end() for call in calls]
        for number, frame in enumerate(ends):
            if isinstance(frame, Error):
                assert frame.code in ("WORKER_LOST", "ENDPOINT_UNREACHABLE")
            else:
                assert frame.payload == b"%d" % number
        assert sum(isinstance(frame, Error) for frame in ends) == 0, "three more attempts are enough for three deaths"
        await until(lambda: bench.endpoint()["workers"] == 2)

    play(scenario)
