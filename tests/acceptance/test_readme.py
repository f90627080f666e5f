"""What the README shows is what happens: its files are written out, its commands are run, its answers are compared."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FLASH = str(Path(sys.executable).with_name("flash"))


def python_files(text: str) -> dict[str, str]:
    """The fenced blocks whose first line is a comment with a file's name."""
    return dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, re.DOTALL))


def shell_lines(text: str, command: str) -> list[tuple[str, str]]:
    """Each line of a shell block that starts with `command`, and the comment line below it (or the empty string)."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        lines = block.splitlines()
        for number, line in enumerate(lines):
            if line.startswith(command):
                below = lines[number + 1] if number + 1 < len(lines) else ""
                found.append((line, below.removeprefix("# ") if below.startswith("# ") else ""))
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "project"
    folder.mkdir()
    for name, body in python_files(README).items():
        (folder / name).write_text(body)
    return folder


@pytest.fixture(scope="module")
def port(project: Path) -> Iterator[int]:
    """The port of a `flash run` on the README's files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = project.parent / "run.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [FLASH, "run", "--port", str(port)], cwd=project, stdout=output, stderr=output, env=environment(project)
        )
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, log.read_text()


def environment(project: Path) -> dict[str, str]:
    return {**os.environ, "FLASH_HOME": str(project.parent / "home")}


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1) as answer:
        return bool(answer.status == 200)
    return False


CURLS = [(line, below) for line, below in shell_lines(README, "curl ") if "localhost:8888" in line]


@pytest.mark.parametrize(("line", "expected"), CURLS, ids=[line.split("localhost:8888")[1][:40] for line, _ in CURLS])
def test_every_curl_line_of_the_readme_answers_as_shown(port: int, line: str, expected: str) -> None:
    done = subprocess.run(
        ["bash", "-c", line.replace("8888", str(port))], capture_output=True, text=True, check=True, timeout=30
    )
    answer = json.loads(done.stdout)
    if expected.startswith("{"):
        assert {**answer, "id": "…"} == {"id": "…", **json.loads(expected)}
    else:
        assert answer["status"] == "COMPLETED"


def test_flash_call_of_the_readme_prints_the_result(project: Path, port: int) -> None:
    (line, _), *_ = shell_lines(README, "flash call")
    command = line.split("#")[0].replace("flash", FLASH, 1)
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, capture_output=True, text=True, timeout=30, env=environment(project)
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, {"message": "Hello, Grace!"}), done.stderr


def test_the_servers_lines_of_the_readme_serve_the_same_project(project: Path, tmp_path: Path) -> None:
    (block,) = (
        block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "flash server --project" in block
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    home = tmp_path / "home"
    env = {**os.environ, "FLASH_HOME": str(home), "PATH": f"{Path(FLASH).parent}{os.pathsep}{os.environ['PATH']}"}
    served = tmp_path / "project"
    served.mkdir()
    (served / "hello.py").write_text((project / "hello.py").read_text())
    said = {}
    try:
        for line in block.splitlines():
            command = line.split("#")[0].strip().replace("7470", port).replace("--detach", f"--detach --port {port}")
            done = subprocess.run(
                ["bash", "-c", command], cwd=served, env=env, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (line, done.stderr)
            said[command.split(" -d")[0]] = done.stdout
    finally:
        subprocess.run([FLASH, "server", "stop"], cwd=served, env=env, capture_output=True, check=False, timeout=60)
    functions = f"curl -s localhost:{port}/v1/functions/hello:"
    assert json.loads(said[functions + "invoke"])["output"] == {"message": "Hello, Ada!"}
    assert json.loads(said[functions + "enqueue"])["status"] == "queued"
    assert said["flash executions list"].count("hello.hello") == 2


def test_the_script_of_the_readme_runs_with_nothing_else_running(project: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text((project / "pipeline.py").read_text())
    done = subprocess.run(
        [sys.executable, "pipeline.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(project),
    )
    assert done.stdout.splitlines() == ["9", "[1, 4]", "[0, 1, 4, 9]", "[3, 2, 1]", "25", "36", "49"], done.stderr


def test_the_quickstart_example_is_the_file_that_the_readme_shows() -> None:
    assert (ROOT / "examples/quickstart/hello.py").read_text() == python_files(README)["hello.py"]


def test_the_start_up_table_is_the_one_that_the_readme_shows(project: Path, port: int) -> None:
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert shown
    printed = (project.parent / "run.log").read_text()
    for path in re.findall(r"POST  (\S+)", shown[1]):
        assert re.search(rf"POST +{re.escape(path)} +hello +QB", printed), printed
