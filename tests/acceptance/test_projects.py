"""Projects as people really have them: odd names, broken files beside good ones, files that use each other."""

import contextlib
import json
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from session_fixtures import FLASH, Served, serving, until
from wheels import make_wheel

HEAD = "from flashmesh import CpuLiveLoadBalancer, CpuLiveServerless, Endpoint, LiveServerless, NetworkVolume, remote\n"


def function(name: str, body: str, *, resource: str = "", parameters: str = "", above: str = "") -> str:
    """A file with one function on a resource of its own."""
    resource = resource or f'CpuLiveServerless(name="{name}-cpu")'
    return f"{above}{HEAD}\n\n@remote({resource})\ndef {name}({parameters}):\n    {body}\n"


BROKEN = {
    "broken.py": HEAD + '@remote(CpuLiveServerless(name="b"))\ndef f(:\n    pass\n',
    "cycle_a.py": function("f", "return g", above="from cycle_b import g\n"),
    "cycle_b.py": "from cycle_a import f\n\n\ndef g():\n    return f\n",
    "raises.py": function("f", "return 1", above="import os\n\nraise RuntimeError('no configuration')\n"),
    "forever.py": function("f", "return 1", above="import time\n\nwhile True:\n    time.sleep(0.1)\n"),
}
ODD = {
    "class.py": function("import_", 'return "from class.py"'),
    "list.py": function("list", "return [n for n in (1, 2)]"),
    "printing.py": function("print", "import builtins\n    builtins.print('x')\n    return __name__"),
    "größe/zähler.py": function("zähle", "return len(名前)", parameters="名前: str"),
    "queue.py": function("f", 'import queue\n    return hasattr(queue, "SimpleQueue")'),
    "types.py": function("f", "from types import SimpleNamespace\n    return SimpleNamespace(a=1).a"),
    "json.py": function("f", "import json\n    return json.dumps({'a': 1})"),
    "numpy.py": function("f", "return 'mine'"),
    "01_start/02_cpu.py": function("f", "return 'numeric'"),
    "my-worker.py": function("f", "return 'hyphen'"),
    "same/one.py": function("f", "return 'one'"),
    "same/two.py": function("f", "return 'two'"),
    "tools/__init__.py": "",
    "tools/text.py": "def loud(text):\n    return text.upper()\n",
    "uses_tools.py": function("f", "return loud('a')", above="from tools.text import loud\n"),
    "stays.py": HEAD + '@remote(CpuLiveServerless(name="stays"), local=True)\ndef f():\n    return "local"\n',
}
WORKING = {
    "counter.py": HEAD
    + """
@remote(CpuLiveServerless(name="counter", workersMax=1))
class Counter:
    def __init__(self, start: int = 0):
        self.n = start

    def inc(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def get(self) -> int:
        return self.n
""",
    "ping.py": function("ping", "return 'end' if n == 0 else [n, pong.call(n - 1)]", parameters="n: int")
    + "\n\nfrom pong import pong\n",
    "pong.py": function("pong", "return [n, ping.call(n)]", parameters="n: int") + "\n\nfrom ping import ping\n",
    "volume.py": function(
        "f",
        'place = Path("/runpod-volume")\n'
        '    return [os.environ.get("FLASH_VOLUME_PATH"), os.environ.get("RUNPOD_VOLUME_PATH"), place.exists()]',
        resource='CpuLiveServerless(name="v", networkVolume=NetworkVolume(name="models"))',
        above="import os\nfrom pathlib import Path\n",
    ),
    "env_a.py": function(
        "f",
        'return {key: value for key, value in os.environ.items() if key.startswith("VALUE_")}',
        resource='CpuLiveServerless(name="a", env={"VALUE_A": "1", "VALUE_BOTH": "a"})',
        above="import os\nseen = os.environ['VALUE_A']\n",
    ),
    "env_b.py": function(
        "f",
        'return {key: value for key, value in os.environ.items() if key.startswith("VALUE_")}',
        resource='CpuLiveServerless(name="b", env={"VALUE_B": "2", "VALUE_BOTH": "b"})',
        above="import os\n",
    ),
    "heavy.py": "import flashtestpkg\n"
    + HEAD
    + """
SIZE = 3


@remote(LiveServerless(name="heavy"), dependencies=["flashtestpkg==1.2"])
async def heavy(n: int) -> list:
    return [flashtestpkg.VERSION, n * SIZE]
""",
    "light.py": function(
        "light",
        'return [await heavy(n), importlib.util.find_spec("flashtestpkg") is None]',
        parameters="n: int",
        above="import importlib.util\nfrom heavy import heavy\n",
    ).replace("def light", "async def light"),
    "api.py": HEAD
    + """
from counter import Counter

api = Endpoint(name="api", cpu="cpu3c-1-2")
here = CpuLiveServerless(name="beside")


class Refused(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


@remote(here)
async def square(n: int) -> int:
    return n * n


@remote(here)
def refuse(code: int) -> None:
    raise Refused(code)


@api.get("/square")
@api.post("/square")
async def squared(n: int = 7) -> int:
    return await square(n)


@api.get("/refused")
async def refused():
    try:
        await refuse(7)
    except Refused as error:
        return {"code": error.code, "traceback": error.remote_traceback}


@api.get("/counted")
async def counted():
    counter = Counter(40)
    return [await counter.inc(), await counter.inc(1), await counter.get()]
""",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = tmp_path_factory.mktemp("projects")
    root = write(base / "odd", {**BROKEN, **ODD, **WORKING})
    (root / "folder").symlink_to("01_start", target_is_directory=True)
    (root / "link.py").symlink_to(root / "my-worker.py")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "dangling.py").symlink_to(root / "nowhere.py")
    make_wheel(base / "wheels", "flashtestpkg", "1.2")
    installer = {"UV_FIND_LINKS": str(base / "wheels"), "UV_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_NO_CACHE": "1"}
    with serving(root, env={**installer, "FLASH_HOME": str(base / "home")}) as session:
        yield session


def output(served: Served, path: str, body: Any = None) -> Any:
    status, answer = served.post(quote(path) + "/run_sync", body)
    assert status == 200, answer
    return answer["output"]


# --- files that cannot be imported ---


@pytest.mark.parametrize(
    ("path", "file", "line", "reason"),
    [
        ("/broken", "broken.py", 3, "SyntaxError"),
        ("/raises", "raises.py", 3, "RuntimeError: no configuration"),
        ("/cycle_a", "cycle_b.py", 1, "ImportError"),
    ],
)
def test_a_broken_file_answers_503_with_file_line_and_reason(
    served: Served, path: str, file: str, line: int, reason: str
) -> None:
    """And every other file keeps working, as the rest of these tests show."""
    status, answer = served.post(f"{path}/run_sync")
    assert status == 503, answer
    assert (answer["code"], answer["file"], answer["line"]) == ("IMPORT_FAILED", file, line), answer
    assert reason in answer["reason"]
    until(lambda: f"{file}:{line}" in served.output(), explain=served.output)


def test_an_import_that_never_ends_holds_up_nobody_else(served: Served) -> None:
    status, answer = served.post("/forever/run")
    assert (status, answer["status"]) == (200, "IN_QUEUE"), answer
    assert output(served, "/same/one") == "one"
    assert served.post(f"/forever/cancel/{answer['id']}")[1]["status"] == "CANCELLED"


# --- names ---


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/class", None, "from class.py"),
        ("/list", None, [1, 2]),
        ("/printing", None, "printing"),
        ("/größe/zähler", {"名前": "五つの文字"}, 5),
        ("/queue", None, True),
        ("/types", None, 1),
        ("/json", None, '{"a": 1}'),
        ("/numpy", None, "mine"),
        ("/01_start/02_cpu", None, "numeric"),
        ("/my-worker", None, "hyphen"),
        ("/link", None, "hyphen"),
        ("/folder/02_cpu", None, "numeric"),
        ("/same/one", None, "one"),
        ("/same/two", None, "two"),
        ("/uses_tools", None, "A"),
        ("/stays", None, "local"),
    ],
)
def test_a_function_answers_whatever_its_file_is_called(served: Served, path: str, body: Any, expected: Any) -> None:
    """Keywords, builtins, stdlib and package names, digits, hyphens, other alphabets, links."""
    assert output(served, path, body) == expected


# --- functions that use each other ---


def test_a_class_keeps_its_state_and_has_one_instance_per_constructor_arguments(served: Served) -> None:
    assert [output(served, "/counter/inc", {"by": 2}) for _ in range(3)] == [2, 4, 6]
    assert output(served, "/counter/get") == 6
    assert served.get("/api/counted") == (200, [41, 42, 42])
    assert output(served, "/counter/get") == 6


def test_an_http_route_calls_a_worker_function_of_its_own_file(served: Served) -> None:
    assert served.get("/api/square?n=9") == (200, 81)


def test_a_function_may_have_two_routes(served: Served) -> None:
    assert served.get("/api/square") == served.post("/api/square") == (200, 49)


def test_an_exception_arrives_as_itself_with_the_remote_traceback(served: Served) -> None:
    status, answer = served.get("/api/refused")
    assert (status, answer["code"]) == (200, 7), answer
    assert "raise Refused(code)" in answer["traceback"]


def test_a_failed_call_shows_the_users_traceback(served: Served) -> None:
    status, answer = served.post("/api/refuse/run_sync", {"code": 3})
    assert (status, answer["status"], answer["error_type"]) == (500, "FAILED", "api.Refused"), answer
    assert answer["traceback"].splitlines()[1].strip().startswith(f'File "{served.root / "api.py"}"')


def test_functions_that_call_each_other_in_a_circle_come_to_an_end(served: Served) -> None:
    assert output(served, "/ping", {"n": 2}) == [2, [1, [1, [0, "end"]]]]


def test_a_worker_without_a_package_calls_the_function_whose_file_imports_it(served: Served) -> None:
    """The file's functions are stubs there; the callee's environment is built at its first call, with progress."""
    assert output(served, "/light", {"n": 5}) == [["1.2", 15], True]
    assert "installing flashtestpkg" in served.output()


# --- surroundings ---


def test_a_network_volume_is_a_folder_that_functions_find(served: Served) -> None:
    flash, runpod, linked = output(served, "/volume")
    assert flash == runpod or linked
    assert Path(flash).is_dir() and Path(flash).name == "models"


def test_env_values_reach_their_own_functions_only(served: Served) -> None:
    assert output(served, "/env_a") == {"VALUE_A": "1", "VALUE_BOTH": "a"}
    assert output(served, "/env_b") == {"VALUE_B": "2", "VALUE_BOTH": "b"}


# --- the command ---


def test_300_files_are_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The start-up time is printed; any of the functions answers."""
    files = {f"part_{n // 20}/file_{n}.py": function("f", f"return {n}") for n in range(300)}
    began = time.monotonic()
    with serving(write(tmp_path / "large", files)) as large:
        took = time.monotonic() - began
        assert [output(large, f"/part_{n // 20}/file_{n}") for n in (0, 150, 299)] == [0, 150, 299]
        assert len(large.output().split("/run_sync")) > 300
    with capsys.disabled():
        print(f" [300 files: first 200 after {took:.2f} s]", end="")  # noqa: T201 - a figure people look for


def asked(url: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json", **given})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.loads(error.read())


def test_other_hosts_and_origins_are_refused_unless_they_are_allowed(served: Served, tmp_path: Path) -> None:
    """The refusal names the option. With it a page of that origin may call, and bodies may run in the server."""
    url = "/same/one/run_sync"
    for headers, option in (
        ({"Host": "evil.example"}, "--allow-host"),
        ({"Origin": "http://a.example"}, "--allow-origin"),
    ):
        status, _, answer = asked(served.url + url, **headers)
        assert status == 403 and option in json.dumps(answer), answer
    root = write(tmp_path / "open", {"where.py": function("f", "return os.getpid()", above="import os\n")})
    with serving(root, "--allow-origin", "http://localhost:5173", "--inline") as opened:
        status, headers, answer = asked(opened.url + "/where/run_sync", Origin="http://localhost:5173")
        assert (status, headers["access-control-allow-origin"]) == (200, "http://localhost:5173")
        assert "worker" not in opened.processes()[answer["output"]], "the body runs in the server's process"


def test_the_generated_server_runs_under_a_plain_uvicorn_command(tmp_path: Path) -> None:
    """With nothing else running: queue functions get workers, HTTP routes run, and all of it ends with the server."""
    root = write(tmp_path / "plain", {"api.py": WORKING["api.py"], "counter.py": WORKING["counter.py"]})
    with serving(root):
        pass
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uvicorn = [str(Path(sys.executable).with_name("uvicorn")), "server:app", "--app-dir", ".flash/"]
    plain = Served(root, command=[*uvicorn, "--port", str(port)])
    plain.url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: plain.get("/ping")[0] == 200, explain=plain.output)
        assert output(plain, "/counter/inc") == 1
        assert plain.get("/api/square?n=4") == (200, 16)
        plain.stop(signal.SIGTERM)
        until(lambda: not plain.processes(), explain=lambda: str(plain.processes()))
    finally:
        plain.end()


def test_a_taken_default_port_gives_the_next_free_one_and_says_so(tmp_path: Path) -> None:
    """And `.flash/` is kept out of the repository by a line at the end of `.gitignore`."""
    root = write(tmp_path / "p", {"one.py": function("f", "return 1")})
    (root / ".gitignore").write_text("*.pyc")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # somebody else's is as good
            taken.bind(("127.0.0.1", 8888))
            taken.listen()
        served = Served(root, command=[*FLASH, "run"])
        try:
            served.wait_until_ready()
            assert int(served.url.rpartition(":")[2]) > 8888
            assert "8888" in served.output() and served.url in served.output()
            assert (root / ".gitignore").read_text() == "*.pyc\n.flash/\n"
            assert served.stop(signal.SIGINT) == 0
        finally:
            served.end()


MADE = (
    HEAD
    + """

def make(name):
    return CpuLiveServerless(name=name)


cpu = make("made")


@remote(cpu)
def f():
    return 1

"""
)


def test_an_early_import_that_never_ends_holds_up_neither_start_nor_stop(tmp_path: Path) -> None:
    """Only importing it tells what the file declares: its URL says so meanwhile, and the others are served."""
    files = {"stuck.py": MADE + BROKEN["forever.py"].partition(HEAD)[0], "fine.py": function("f", "return 1")}
    with serving(write(tmp_path / "p", files)) as session:
        assert output(session, "/fine") == 1
        status, answer = session.post("/stuck/run_sync")
        assert (status, answer["file"]) == (503, "stuck.py") and "still being imported" in answer["reason"], answer
        session.save("stuck.py", MADE)
        until(lambda: session.post("/stuck/run_sync")[0] == 200, explain=session.output)
        session.save("stuck.py", MADE.replace("return 1", "return 2"))
        seen = set()

        def answered_by_the_new_code() -> bool:
            status, answer = session.post("/stuck/run_sync")
            seen.add(status)
            return bool(answer.get("output") == 2)

        until(answered_by_the_new_code, explain=session.output)
        assert seen == {200}, "the routes stay while the file is imported again"
        session.save("stuck.py", files["stuck.py"])
        assert session.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["TERM", "INT", "KILL"])
def test_no_process_stays_however_the_command_ends(tmp_path: Path, number: signal.Signals) -> None:
    """Workers, their subprocesses, an import that never ends: nothing is left."""
    spawns = function("f", "return subprocess.Popen(['sleep', '1000']).pid", above="import subprocess\n")
    with serving(write(tmp_path / "p", {"spawns.py": spawns, "forever.py": BROKEN["forever.py"]})) as session:
        assert session.post("/forever/run")[0] == 200
        assert output(session, "/spawns")
        session.stop(number)
        until(lambda: not session.processes(), explain=lambda: str(session.processes()))
        assert not (session.root / ".flash" / "session.json").exists() or number is signal.SIGKILL
