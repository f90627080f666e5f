"""Requests that name a function: where they run, and what is answered whatever happens."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from flashmesh.functions.errors import EndpointUnreachable, FunctionNotFound, RemoteError
from flashmesh.kit.ids import EndpointName
from flashmesh.routing.registry import ServiceRegistry
from flashmesh.routing.remote_executor import FunctionResponse, RemoteExecutor, Request, mode_of
from flashmesh.routing.route import Own, Remote

MANIFEST = {
    "function_registry": {"own": "cpu", "train": "gpu", "lost": "gone"},
    "resources": {
        "cpu": {"functions": ["own"]},
        "gpu": {"functions": ["train"], "endpoint_url": "https://gpu.example"},
    },
}


class Far:
    """What happens on the other side."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, route: Remote, request: Request, *, seconds: float) -> Any:
        assert seconds == 300
        self.asked.append(route.url)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def executor(folder: Path, far: Far, *, looks: list[int] | None = None, code: bool = False) -> RemoteExecutor:
    path = folder / "manifest.json"
    path.write_text(json.dumps(MANIFEST))

    async def local(request: Request) -> Any:
        if request["function_name"] != "own":
            raise FunctionNotFound("not here")
        return "local"

    async def sent(request: Request) -> Any:
        return "ran " + request["function_code"]

    async def nothing() -> None: ...

    async def look() -> None:
        (looks if looks is not None else []).append(1)

    registry = ServiceRegistry(path, own=Own(EndpointName("cpu")))
    return RemoteExecutor(
        registry=registry, ask=nothing, look_again=look, run_local=local, pass_on=far, run_code=sent if code else None
    )


def execute(at: RemoteExecutor, **request: Any) -> FunctionResponse:
    return asyncio.run(at.execute(request))


def test_a_request_runs_where_its_function_is(tmp_path: Path) -> None:
    far = Far("remote")
    at = executor(tmp_path, far)
    assert execute(at, function_name="own") == FunctionResponse(True, "local")
    assert not far.asked
    assert execute(at, function_name="train") == FunctionResponse(True, "remote")
    assert far.asked == ["https://gpu.example/train/run_sync"]


@pytest.mark.parametrize("name", ["nobodys", "lost"])
def test_what_cannot_be_looked_up_is_tried_here_with_a_warning(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = execute(executor(tmp_path, Far()), function_name=name)
    assert (answer.success, answer.error) == (False, "FunctionNotFound: not here")
    assert "Function lookup failed" in caplog.text


def test_a_remote_error_is_an_answer_with_its_type_and_traceback(tmp_path: Path) -> None:
    error = RemoteError("no memory", type_name="gpu.OutOfMemory", remote_traceback="Traceback: in train")
    answer = execute(executor(tmp_path, Far(error)), function_name="train")
    assert answer == FunctionResponse(False, error="gpu.OutOfMemory: no memory\nTraceback: in train")


def test_an_endpoint_that_does_not_answer_is_looked_up_once_more(tmp_path: Path) -> None:
    looks: list[int] = []
    at = executor(tmp_path, Far(EndpointUnreachable("gone"), "found"), looks=looks)
    assert execute(at, function_name="train") == FunctionResponse(True, "found")
    assert looks == [1]
    twice = executor(tmp_path, Far(EndpointUnreachable("gone"), EndpointUnreachable("gone")))
    assert execute(twice, function_name="train").error == "EndpointUnreachable: gone"


def test_code_in_a_request_makes_it_live_mode(tmp_path: Path) -> None:
    request = {"function_name": "f", "function_code": "def f(): ..."}
    assert (mode_of(request), mode_of({"function_name": "f", "function_code": ""})) == ("live", "flash")
    refused = execute(executor(tmp_path, Far()), **request)
    assert not refused.success and "no code" in str(refused.error)
    assert execute(executor(tmp_path, Far(), code=True), **request).json_result == "ran def f(): ..."


def test_a_request_without_a_name_says_so(tmp_path: Path) -> None:
    assert "names no function" in str(execute(executor(tmp_path, Far())).error)
