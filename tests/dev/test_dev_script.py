"""`python script.py` with nothing else running: workers are started for it, and end with it however it ends."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from session_fixtures import until

SHARED = """
import asyncio, os
from dataclasses import dataclass
from flashmesh import CpuLiveServerless, Endpoint, remote

cpu = CpuLiveServerless(name="maths", workersMax=2)
LIMIT = 3


class TooLarge(ValueError):
    pass


@dataclass
class Point:
    x: int


def helper(x):
    return x * LIMIT


@remote(cpu)
def triple(x):
    if x > 100:
        raise TooLarge(x, LIMIT)
    return helper(x)


@remote(cpu)
def shift(point: Point) -> Point:
    return Point(point.x + 1)


@remote(cpu)
def pid():
    return os.getpid()


@Endpoint(name="outer", cpu="cpu3g-2-8")
async def outer(x):
    return [await triple(x), os.getpid()]
"""


def run(arguments: list[str], cwd: Path, *, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=90, check=False
    )


def script(tmp_path: Path, body: str, *, shared: str = SHARED, name: str = "script.py") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(shared + textwrap.dedent(body))
    return path


USES = """
assert triple.call(2) == 6
assert pid.call() != os.getpid()
assert asyncio.run(triple(3)) == 9
value, where = asyncio.run(outer(4))
assert value == 12 and where not in (os.getpid(), pid.call())
assert shift.call(Point(1)) == Point(2)
try:
    triple.call(101)
except TooLarge as error:
    assert error.args == (101, 3) and "helper" not in error.remote_traceback
else:
    raise SystemExit("nothing was raised")
print("fine")
"""


def test_functions_exceptions_and_values_of_a_script_come_back_as_its_own(tmp_path: Path) -> None:
    done = run([str(script(tmp_path, USES))], tmp_path)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@pytest.mark.parametrize("how", ["command", "stdin"])
def test_functions_without_a_file_are_sent(tmp_path: Path, how: str) -> None:
    text = SHARED + USES
    done = run(["-c", text], tmp_path) if how == "command" else run(["-"], tmp_path, stdin=text)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_a_notebooks_cells_can_be_run_again_with_other_code(tmp_path: Path) -> None:
    """A cell is compiled under a name that only linecache knows, in a `__main__` without a file."""
    body = """
    import linecache, sys, types
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    def cell(number, text):
        name = f"<ipython-input-{number}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        exec(compile(text, name, "exec"), main.__dict__)
    cell(1, SHARED)
    cell(2, "first = triple.call(2)")
    cell(3, "LIMIT = 5")
    cell(4, "@remote(cpu)\\ndef triple(x): return x * LIMIT")
    cell(5, "print(first, triple.call(2), asyncio.run(outer(2))[0])")
    """
    done = run([str(script(tmp_path, f"SHARED = {SHARED!r}\n" + textwrap.dedent(body), shared=""))], tmp_path)
    assert (done.stdout, done.returncode) == ("6 10 10\n", 0), done.stderr


def test_a_bare_run_on_the_last_line_needs_no_main_guard(tmp_path: Path) -> None:
    done = run([str(script(tmp_path, "print(asyncio.run(triple(5)))\n"))], tmp_path)
    assert done.stdout == "15\n", done.stderr


def test_a_module_of_a_package_and_its_siblings(tmp_path: Path) -> None:
    script(tmp_path, "", name="pkg/functions.py")
    (tmp_path / "pkg" / "__init__.py").touch()
    script(tmp_path, "from .functions import triple\nprint(triple.call(1))\n", shared="", name="pkg/tool.py")
    script(tmp_path, "from pkg.functions import triple\nprint(triple.call(2))\n", shared="", name="beside.py")
    assert run(["-m", "pkg.tool"], tmp_path).stdout == "3\n"
    assert run(["beside.py"], tmp_path).stdout == "6\n"


def test_maps_streams_jobs_and_classes(tmp_path: Path) -> None:
    body = """
    @remote(cpu)
    def count(n):
        yield from range(n)

    @remote(cpu)
    class Counter:
        def __init__(self, start):
            self.n = start
        def add(self, by):
            self.n += by
            return self.n

    async def main():
        job = triple.spawn(5)
        print([x async for x in triple.map(range(4))], [x async for x in count(3)], await job.result())
        counter = Counter(10)
        print(await counter.add(1), await counter.add(1))

    asyncio.run(main())
    print(list(count.call(2)))
    """
    done = run([str(script(tmp_path, body, shared=SHARED.replace("workersMax=2", "workersMax=1")))], tmp_path)
    assert done.stdout.splitlines() == ["[0, 3, 6, 9] [0, 1, 2] 15", "11 12", "[0, 1]"], done.stderr


def test_what_functions_print_is_shown(tmp_path: Path) -> None:
    done = run([str(script(tmp_path, "@remote(cpu)\ndef say():\n    print('from a worker')\nsay.call()\n"))], tmp_path)
    assert done.stdout == "[say] from a worker\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["INT", "KILL"])
def test_a_script_that_is_interrupted_or_killed_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    body = """
    import subprocess, time
    @remote(cpu)
    def endless():
        subprocess.Popen(["sleep", "1000"])
        print("begun", flush=True)
        time.sleep(1000)
    endless.call()
    """
    mark = f"{tmp_path}-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, str(script(tmp_path, body))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "FLASH_TEST_MARK": mark},
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "[endless] begun\n"
        process.send_signal(number)
        process.wait(20)
    until(lambda: not _marked(mark), explain=lambda: str(_marked(mark)))


def _marked(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if f"FLASH_TEST_MARK={mark}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found
