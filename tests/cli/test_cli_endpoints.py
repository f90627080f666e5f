"""Endpoints as `flash status` shows them: which address, and a curl line that works when it is pasted."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import click
import pytest

from flashmesh.cli.deploying import plan_lines, progress_line
from flashmesh.cli.endpoints import Caller, curl_lines, described, endpoint_lines, sample
from flashmesh.cli.login import ServerAddress

HERE = Caller("http://127.0.0.1:7470")
TOKEN = '-H "Authorization: Bearer $FLASH_TOKEN"'
AWAY = Caller("https://box.lan:7470", [TOKEN])


def parameter(name: str, annotation: str | None = None, default: str | None = None, kind: str = "positional") -> Any:
    return {"name": name, "annotation": annotation, "default": default, "kind": kind}


def function(id: str, *parameters: Any, **more: Any) -> dict[str, Any]:
    return {"id": id, "name": id.rpartition(".")[2], "is_class": False, "parameters": parameters, **more}


def entry(*functions: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "endpoint_id": "cpu-1f0c22ab",
        "endpoint_url": "http://127.0.0.1:41000",
        "is_load_balanced": False,
        "file_path": "cpu.py",
        "status": "deployed",
        "build": "abcdefabcdef",
        "functions": list(functions),
        **more,
    }


def parsed(line: str) -> list[str]:
    return shlex.split(line)


def test_the_only_function_of_an_endpoint_is_called_at_its_own_address() -> None:
    (line,) = curl_lines(entry(function("cpu.hello", parameter("name", "str"))), function("cpu.hello"), HERE)
    assert parsed(line)[:2] == ["curl", "http://127.0.0.1:41000/run_sync"]


def test_of_several_functions_the_shortest_name_that_tells_them_apart_is_in_the_path() -> None:
    """Methods of a class are functions too."""
    counter = function(
        "m.Counter", is_class=True, methods=[{"name": "inc", "parameters": []}, {"name": "hello", "parameters": []}]
    )
    found = entry(function("m.hello"), counter)
    urls = [parsed(line)[1] for one in found["functions"] for line in curl_lines(found, one, HERE)]
    assert [url.rpartition(":41000/")[2] for url in urls] == [
        "m.hello/run_sync",
        "inc/run_sync",
        "Counter.hello/run_sync",
    ]


def test_a_server_elsewhere_is_called_itself_with_a_token_that_is_not_shown() -> None:
    """An address of its loopback means another machine here."""
    found = entry(function("cpu.hello"))
    (line,) = curl_lines(found, found["functions"][0], AWAY)
    assert "https://box.lan:7470/v2/cpu-1f0c22ab/runsync" in line and line.endswith(TOKEN)
    found = entry(function("api.get", http_method="GET", http_path="/items/{id}"), is_load_balanced=True)
    (line,) = curl_lines(found, found["functions"][0], AWAY)
    assert "https://box.lan:7470/lb/cpu-1f0c22ab/items/" in line and line.endswith(TOKEN)


@pytest.mark.parametrize("source", ["flash login", "FLASH_SERVER"])
def test_no_secret_is_in_a_line(source: str) -> None:
    from flashmesh.cli.client import ServerClient
    from flashmesh.cli.endpoints import caller_of

    address = ServerAddress(url="https://box.lan:7470", token="s3cr3t", anchor="PEM", source=source)
    options = " ".join(caller_of(ServerClient(address)).options)
    assert "Bearer $" in options and "--cacert" in options and "s3cr3t" not in options and "PEM" not in options


def test_arguments_that_are_needed_have_values_that_fit() -> None:
    """By their schema where it is known, else by their annotation; what has a default is left out."""
    parameters = [
        parameter("name", "str"),
        parameter("count", "int"),
        parameter("values", "list[float]"),
        parameter("batch", "Batch"),
        parameter("loud", "bool", "False"),
        parameter("rest", kind="var_keyword"),
    ]
    assert sample(parameters) == {"name": "text", "count": 1, "values": [], "batch": {}}
    schema = {
        "properties": {"batch": {"$ref": "#/$defs/Batch"}},
        "$defs": {"Batch": {"type": "object", "properties": {"size": {"type": "integer"}}}},
    }
    assert sample(parameters, schema)["batch"] == {"size": 1}


def test_routes_are_called_with_their_method_path_query_and_body() -> None:
    """A quote in a value breaks no line."""
    routes = entry(is_load_balanced=True)

    def line(method: str, path: str, *parameters: Any) -> list[str]:
        found = function("api.f", *parameters, http_method=method, http_path=path)
        return parsed(curl_lines(routes, found, HERE)[0])

    url = "http://127.0.0.1:41000"
    item, much = parameter("id", "int"), parameter("much", "float")
    assert line("GET", "/items/{id}", item, much) == ["curl", f"{url}/items/1?much=1.0"]
    assert line("DELETE", "/items/{id}", item) == ["curl", "-X", "DELETE", f"{url}/items/1"]
    posted = line("POST", "/items", item, much)
    assert posted[1] == f"{url}/items" and json.loads(posted[posted.index("-d") + 1]) == {"id": 1, "much": 1.0}
    assert line("POST", "/go") == ["curl", "-X", "POST", f"{url}/go"]


def test_what_failed_is_shown_with_its_error_and_without_a_line_that_cannot_work() -> None:
    """The others stand beside it."""
    failed = entry(function("gpu.f"), status="failed", error="no torch", build=None, endpoint_url=None)
    manifest = {"app": "shop", "environment": "production", "build": "b", "resources": {"a": entry(), "gpu": failed}}
    document = described(manifest, {"cpu-1f0c22ab": {"ready": 2, "running": 1}}, HERE)
    first, second = document["endpoints"]
    assert (first["workers"], first["url"]) == (2, "http://127.0.0.1:41000")
    assert second["functions"] == [{"id": "gpu.f", "curl": None}]
    text = "\n".join(endpoint_lines(document))
    assert "error: gpu: no torch" in text and "curl" not in text


def test_a_plan_and_progress_are_told_in_a_line_each() -> None:
    plan = {
        "new": [{"name": "n", "lines": []}],
        "changed": [{"name": "c", "was_name": "old", "in_place": True, "lines": ["workers_max 1 → 3"]}],
        "removed": [],
        "unchanged": [{"name": "u"}],
    }
    assert [click.unstyle(line) for line in plan_lines(plan)] == [
        "  + n  new",
        "  ~ c (was old)  changed, in place",
        "      workers_max 1 → 3",
        "  = 1 unchanged",
    ]
    failed = progress_line({"resource": "gpu", "state": "failed", "error": "no torch"})
    assert click.unstyle(failed) == "  x gpu failed: no torch"


def test_what_a_route_gets_from_fastapi_is_not_the_callers_to_send() -> None:
    given = (parameter("n", "int"), parameter("request", "Request"), parameter("tasks", "fastapi.BackgroundTasks"))
    route = function("api.get", *given, http_method="GET", http_path="/items/{n}")
    (line,) = curl_lines(entry(route, is_load_balanced=True), route, HERE)
    assert parsed(line)[1].endswith("/items/1")
