"""`python script.py` where its project is deployed: which server is called, what is said, and what comes back."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed_server import DeployedServer, deployed_server, log_in, post, run_script

MATHS = """
import asyncio, os
from dataclasses import dataclass
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="maths", workersMax=2)


class TooLarge(ValueError):
    pass


@dataclass
class Point:
    x: int


@remote(cpu)
def triple(x):
    if x > 100:
        raise TooLarge(f"{x} is too large")
    return x * 3


@remote(cpu)
def where():
    return os.environ.get("FLASH_ENV", "nowhere")


@remote(cpu)
def shift(point: Point) -> Point:
    return Point(point.x + 1)


@remote(cpu)
def count(n):
    yield from range(n)


@remote(cpu)
def count_badly(n):
    yield from range(n)
    raise TooLarge("no more")


@remote(cpu)
class Counter:
    def __init__(self, start):
        self.n = start

    def add(self, by):
        self.n += by
        return self.n
"""
FRONT = """
from flashmesh import CpuLiveServerless, remote
from maths import triple

front = CpuLiveServerless(name="front")


@remote(front)
async def nine_times(x):
    return await triple(await triple(x))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[DeployedServer]:
    with deployed_server() as running:
        yield running


@pytest.fixture(scope="module")
def shop(server: DeployedServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that is deployed."""
    project = tmp_path_factory.mktemp("shop") / "shop"
    project.mkdir()
    (project / "maths.py").write_text(MATHS)
    (project / "front.py").write_text(FRONT)
    server.deploy(project)
    return project


USES = """
import asyncio
from maths import Counter, Point, TooLarge, count, count_badly, shift, triple, where
from front import nine_times

assert where.call() == "production"
assert asyncio.run(triple(3)) == 9
assert asyncio.run(nine_times(2)) == 18
assert shift.call(Point(1)) == Point(2)
assert asyncio.run(shift(Point(2))) == Point(3)
for attempt in (lambda: triple.call(101), lambda: asyncio.run(triple(101)), lambda: triple.spawn(101).call.result()):
    try:
        attempt()
    except TooLarge as error:
        assert str(error) == "101 is too large" and "in triple" in error.remote_traceback
    else:
        raise SystemExit("nothing was raised")

async def main():
    assert [item async for item in count(200)] == list(range(200))
    assert [x async for x in triple.map(range(5))] == [0, 3, 6, 9, 12]
    assert await asyncio.gather(*(triple(n) for n in range(8))) == [3 * n for n in range(8)]
    job = triple.spawn(7)
    assert await job.result(timeout=30) == 21 and await job.status() == "COMPLETED"
    streaming = count.spawn(3)
    assert [item async for item in streaming.stream()] == [0, 1, 2]
    try:
        async for item in count_badly(2):
            pass
    except TooLarge as error:
        assert (item, str(error)) == (1, "no more")
    else:
        raise SystemExit("nothing was raised")

asyncio.run(main())
assert list(count.call(3)) == [0, 1, 2]
assert list(count.spawn(4).call.stream()) == [0, 1, 2, 3]
counter = Counter(5)
assert [counter.add.call(1), counter.add.call(2)] in ([6, 8], [6, 7])  # two workers may have an instance each
try:
    triple.call(1, 2)
except Exception as error:
    assert "takes" in str(error) or "argument" in str(error), error
print("fine")
"""


def test_a_deployed_projects_functions_are_called_on_the_server(server: DeployedServer, shop: Path) -> None:
    """Values, types, exceptions, streams, maps, jobs and classes come back as from workers here; a line says where."""
    done = run_script(server.home, shop, "script.py", USES)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    said = f"flash: Calls of this script go to {server.url} (named by this machine), app shop, environment production."
    assert done.stderr.splitlines() == [said]


def test_a_file_with_functions_may_be_the_script_itself(server: DeployedServer, shop: Path) -> None:
    """Its classes are those of `__main__` here and of `main_file` there."""
    body = MATHS.replace('name="maths"', 'name="other"') + (
        "\nif __name__ == '__main__':\n"
        "    try:\n        triple.call(101)\n"
        "    except TooLarge as error:\n        print(error, shift.call(Point(1)).x, where.call())\n"
    )
    (shop / "main_file.py").write_text(body)
    server.deploy(shop)
    done = run_script(server.home, shop, "main_file.py")
    assert done.stdout == "101 is too large 2 production\n", done.stderr


def test_code_that_changed_since_it_was_deployed_is_said_once(server: DeployedServer, shop: Path) -> None:
    """The deployed build answers; the line names the file and the command."""
    (shop / "changed").mkdir()
    helper = shop / "changed" / "helper.py"
    helper.write_text("FACTOR = 2\n")
    (shop / "changed" / "__init__.py").touch()
    source = (
        "from flashmesh import CpuLiveServerless, remote\nfrom changed.helper import FACTOR\n"
        'c = CpuLiveServerless(name="changing")\n\n@remote(c)\ndef times(x):\n    return x * FACTOR\n'
    )
    (shop / "changing.py").write_text(source)
    server.deploy(shop)
    script = "from changing import times\nprint(times.call(2), times.call(3))\n"
    same = run_script(server.home, shop, "calls.py", script)
    assert same.stdout == "4 6\n" and len(same.stderr.splitlines()) == 1, same.stderr
    helper.write_text("FACTOR = 5\n")
    done = run_script(server.home, shop, "calls.py")
    assert done.stdout == "4 6\n"
    assert len(done.stderr.splitlines()) == 2
    assert "changing is deployed" in done.stderr and "changed/helper.py changed" in done.stderr
    assert "`flash deploy`" in done.stderr


def test_a_function_that_is_not_deployed_runs_here_and_that_is_said(server: DeployedServer, shop: Path) -> None:
    body = """
    from flashmesh import CpuLiveServerless, remote
    from maths import where

    @remote(CpuLiveServerless(name="fresh"))
    def fresh():
        import os
        return os.environ.get("FLASH_ENV", "nowhere")

    if __name__ == "__main__":
        print(where.call(), fresh.call())
    """
    done = run_script(server.home, shop, "fresh.py", body)
    assert done.stdout == "production nowhere\n", done.stderr
    assert "fresh is not deployed there: it runs in a worker on this machine" in done.stderr


def test_a_project_that_is_deployed_nowhere_runs_here(server: DeployedServer, tmp_path: Path) -> None:
    """Though a server runs: the line says why it is not called."""
    project = tmp_path / "alone"
    project.mkdir()
    (project / "maths.py").write_text(MATHS)
    done = run_script(server.home, project, "s.py", "from maths import where\nprint(where.call())\n")
    assert done.stdout == "nowhere\n", done.stderr
    assert f"Nothing is deployed on {server.url} (named by this machine) for app alone" in done.stderr


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """A server that takes nobody's token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def test_flash_server_is_obeyed(server: DeployedServer, shop: Path, tmp_path: Path) -> None:
    """It wins; it needs the token that belongs to it; what it does not have is an error and runs nowhere else."""
    script = "from maths import where\nprint(where.call())\n"
    named = run_script(tmp_path, shop, "named.py", script, FLASH_SERVER=server.url, FLASH_TOKEN=server.token)
    assert named.stdout == "production\n", named.stderr
    assert "named by FLASH_SERVER" in named.stderr
    assert server.token not in named.stderr

    with refusing() as url:
        wrong = run_script(tmp_path, shop, "named.py", FLASH_SERVER=url, FLASH_TOKEN="wrong-token")
    assert wrong.returncode == 1
    assert "refuses to tell what is deployed (401)" in wrong.stderr and "wrong-token" not in wrong.stderr

    project = tmp_path / "absent"
    project.mkdir()
    (project / "maths.py").write_text(MATHS)
    absent = run_script(tmp_path, project, "s.py", script, FLASH_SERVER=server.url, FLASH_TOKEN=server.token)
    assert absent.returncode == 1
    assert "Nothing is deployed" in absent.stderr and "`flash deploy`" in absent.stderr

    gone = run_script(server.home, shop, "named.py", FLASH_SERVER="http://127.0.0.1:9")
    assert gone.returncode == 1
    assert "http://127.0.0.1:9 (named by FLASH_SERVER) does not answer" in gone.stderr

    far = run_script(server.home, shop, "named.py", FLASH_SERVER="http://example.com")
    assert far.returncode == 1 and "InsecureAddress" in far.stderr


def test_under_flash_server_a_function_it_lacks_is_an_error(server: DeployedServer, shop: Path) -> None:
    body = """
    from flashmesh import CpuLiveServerless, remote

    @remote(CpuLiveServerless(name="lacking"))
    def lacking():
        return 1

    if __name__ == "__main__":
        lacking.call()
    """
    done = run_script(server.home, shop, "lacking.py", body, FLASH_SERVER=server.url)
    assert done.returncode == 1
    assert "'lacking' is not deployed on" in done.stderr


def test_what_flash_login_named_comes_before_this_machines_server(
    server: DeployedServer, shop: Path, tmp_path: Path
) -> None:
    """And is passed over for a project that it does not have."""
    log_in(tmp_path, server)
    script = "from maths import where\nprint(where.call())\n"
    done = run_script(tmp_path, shop, "logged.py", script)
    assert done.stdout == "production\n", done.stderr
    assert "named by flash login" in done.stderr
    assert server.token not in done.stderr

    project = tmp_path / "unknown"
    project.mkdir()
    (project / "maths.py").write_text(MATHS)
    passed = run_script(tmp_path, project, "s.py", script)
    assert passed.stdout == "nowhere\n", passed.stderr
    assert "(named by flash login) for app unknown" in passed.stderr


WEB = """
from dataclasses import dataclass
from flashmesh import CpuLiveLoadBalancer, remote

lb = CpuLiveLoadBalancer(name="web")


@dataclass
class Item:
    n: int
    name: str


@remote(lb, method="POST", path="/items/{n}")
async def put(n: int, name: str, size: int = 1) -> Item:
    return Item(n, name * size)


@remote(lb, method="GET", path="/find")
async def find(word: str, exact: bool = False) -> dict:
    return {"word": word, "exact": exact}


@remote(lb, method="GET", path="/count/{n}")
async def numbers(n: int):
    for i in range(n):
        yield {"i": i}


@remote(lb, method="GET", path="/fails")
async def fails() -> int:
    raise KeyError("no such thing")
"""
CALLS_WEB = """
from web import Item, fails, find, numbers, put

async def calls():
    made = await put(7, name="x y", size=2)
    assert made == Item(7, "x yx y"), made
    assert await find("a b&c", exact=True) == {"word": "a b&c", "exact": True}
    assert [item async for item in numbers(30)] == [{"i": i} for i in range(30)]
    try:
        await fails()
    except KeyError as error:
        return "in fails" in error.remote_traceback
"""


def test_routes_are_called_by_scripts_and_by_other_endpoints(server: DeployedServer, tmp_path: Path) -> None:
    """Path parameters, queries, typed results, streams, and errors as they were."""
    project = tmp_path / "site"
    project.mkdir()
    (project / "web.py").write_text(WEB)
    decorated = CALLS_WEB.replace("async def calls", '@remote(CpuLiveServerless(name="front"))\nasync def uses')
    (project / "front.py").write_text(f"from flashmesh import CpuLiveServerless, remote\n{decorated}")
    server.deploy(project)
    body = f"""import asyncio\n{CALLS_WEB}\nfrom front import uses\nprint(uses.call(), asyncio.run(calls()))\n"""
    done = run_script(server.home, project, "script.py", body)
    assert done.stdout == "True True\n", done.stderr


RING = """
from flashmesh import CpuLiveLoadBalancer, CpuLiveServerless, remote
import {other}

@remote({resource}
async def {name}(n: int) -> list:
    return [n, *(await {other}.{other}_ring(n - 1) if n else [])]
"""


def test_calls_that_go_round_through_queues_and_routes_complete(server: DeployedServer, tmp_path: Path) -> None:
    """Eight endpoints in a row; more are ended with an error that names them."""
    project = tmp_path / "ring"
    project.mkdir()
    web = 'CpuLiveLoadBalancer(name="web"), method="POST", path="/ring/{n}")'
    (project / "web.py").write_text(RING.format(other="gpu", resource=web, name="web_ring"))
    (project / "gpu.py").write_text(
        RING.format(other="web", resource='CpuLiveServerless(name="gpu"))', name="gpu_ring")
    )
    server.deploy(project)
    body = """
    from gpu import gpu_ring
    from web import web_ring
    assert gpu_ring.call(8) == list(range(8, -1, -1))
    assert web_ring.call(8) == list(range(8, -1, -1))
    try:
        web_ring.call(40)
    except Exception as error:
        print(type(error).__name__, "gpu" in str(error), "more than 8 endpoints" in str(error))
    """
    done = run_script(server.home, project, "script.py", body)
    assert done.stdout == "CallCycle True True\n", done.stdout + done.stderr


def test_a_runpod_key_alone_is_no_road(tmp_path: Path) -> None:
    project = tmp_path / "p"
    project.mkdir()
    (project / "maths.py").write_text(MATHS)
    done = run_script(
        tmp_path / "home", project, "s.py", "from maths import where\nprint(where.call())\n", RUNPOD_API_KEY="k"
    )
    assert (done.stdout, done.stderr) == ("nowhere\n", "")


def test_deployed_endpoints_call_each_other_without_the_server(tmp_path: Path) -> None:
    """Killed, its endpoints answer at their own addresses and find their peers by the manifest they have."""
    project = tmp_path / "shop"
    project.mkdir()
    (project / "maths.py").write_text(MATHS)
    (project / "front.py").write_text(FRONT)
    with deployed_server() as server:
        server.deploy(project)
        resources: Any = server.manifest("shop")["resources"]
        url = resources["front"]["endpoint_url"]
        assert post(f"{url}/run_sync", {"input": {"x": 1}})["output"] == 9  # type: ignore[index]
        server.kill()
        try:
            assert post(f"{url}/run_sync", {"input": {"x": 2}})["output"] == 18  # type: ignore[index]
        finally:
            server.start()
        assert post(f"{url}/run_sync", {"input": {"x": 3}})["output"] == 27  # type: ignore[index]


def test_a_forked_child_asks_for_itself(server: DeployedServer, shop: Path) -> None:
    """It does not use its parent's connections."""
    body = """
    import os
    from maths import triple
    assert triple.call(1) == 3
    child = os.fork()
    if child == 0:
        os._exit(0 if triple.call(2) == 6 else 1)
    assert os.waitpid(child, 0)[1] == 0
    print(triple.call(3))
    """
    done = run_script(server.home, shop, "forks.py", body)
    assert done.stdout == "9\n", done.stderr
