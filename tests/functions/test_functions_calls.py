"""The process's Caller, and imports that end at a decorated call."""

import asyncio
import contextlib
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from functions_fixtures import FakeCaller, installed

from flashmesh.functions import caller
from flashmesh.functions.calls import ImportEnded, importing
from flashmesh.functions.remote import remote
from flashmesh.functions.resources import LiveServerless

resource = LiveServerless(name="calls")


@remote(resource)
def hello(name: str = "you") -> str:
    return f"hello {name}"


@remote(resource)
def count() -> Iterator[int]:
    yield 1


@pytest.fixture
def no_caller() -> Iterator[None]:
    with installed(None):
        yield


def test_a_decorated_call_during_an_import_ends_the_import() -> None:
    """Flash's front-page example ends in a bare asyncio.run."""
    with installed(FakeCaller(local=True)), importing():
        with pytest.raises(ImportEnded):
            asyncio.run(hello())
        with pytest.raises(ImportEnded):
            hello.call()
        with pytest.raises(ImportEnded):
            count()
        with pytest.raises(ImportEnded):
            hello.spawn()


def test_except_exception_around_the_call_does_not_swallow_the_end() -> None:
    with installed(FakeCaller()), importing(), pytest.raises(ImportEnded):
        try:
            hello.call()
        except Exception:
            pytest.fail("swallowed")


def test_calls_of_other_threads_go_on_during_an_import() -> None:
    """A server answers requests while a background thread imports a module."""
    answers = []
    with installed(FakeCaller()), importing():
        thread = threading.Thread(target=lambda: answers.append(hello.call()))
        thread.start()
        thread.join()
    assert answers == ["answered"]


def test_an_import_never_makes_a_caller(no_caller: None) -> None:
    """A thread that the imported module starts must not start a worker either."""
    raised = []

    def call() -> None:
        try:
            hello.call()
        except BaseException as error:
            raised.append(type(error))

    with importing():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert raised == [ImportEnded]


def test_imports_nest() -> None:
    with installed(FakeCaller()), importing():
        with importing():
            pass
        with pytest.raises(ImportEnded):
            hello.call()
    with installed(FakeCaller()):
        assert hello.call() == "answered"


def test_a_script_s_caller_is_made_at_the_first_call(no_caller: None, monkeypatch: pytest.MonkeyPatch) -> None:
    script = types.ModuleType("flashmesh.dev.script.assemble")
    made = []

    def assemble() -> FakeCaller:
        made.append(FakeCaller())
        return made[-1]

    script.assemble = assemble  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashmesh.dev.script.assemble", script)
    assert made == []
    assert hello.call() == "answered"
    assert hello.call() == "answered"
    assert len(made) == 1


def test_the_port_s_file_gives_the_names_its_implementers_need() -> None:
    assert caller.install is not None
    assert caller.Call is not None
    assert issubclass(caller.ImportEnded, BaseException)
    assert not issubclass(caller.ImportEnded, Exception)


def test_threads_that_call_first_at_once_share_one_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would start a session of its own otherwise."""
    made: list[FakeCaller] = []
    together = threading.Barrier(2)

    def assemble() -> FakeCaller:
        made.append(FakeCaller())
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # for another thread that makes one too
        return made[-1]

    monkeypatch.setattr("flashmesh.dev.script.assemble.assemble", assemble)
    with installed(None), ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: caller.installed(), range(4)))
    assert found == made * 4


def test_a_caller_installed_while_the_scripts_own_is_made_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = FakeCaller()

    def assemble() -> FakeCaller:
        caller.install(mine)
        return FakeCaller()

    monkeypatch.setattr("flashmesh.dev.script.assemble.assemble", assemble)
    with installed(None):
        assert caller.installed() is mine
        assert caller.installed() is mine
