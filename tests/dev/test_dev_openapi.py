from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dev_server_client import run, serving
from hypothesis import given
from hypothesis import strategies as st
from lb_isolation import forget_project_modules
from openapi_spec_validator import OpenAPIV31SpecValidator

from flashmesh.dev.server import openapi
from flashmesh.dev.server.app import DevServer
from flashmesh.dev.server.route_book import QueueRoute, RouteBook, Unavailable
from flashmesh.functions import caller
from flashmesh.worker.lb.route import HttpRoute


@pytest.fixture(autouse=True)
def _clean_interpreter() -> Iterator[None]:
    with forget_project_modules():
        yield
    caller.install(None)


def validated(document: dict[str, Any]) -> dict[str, Any]:
    OpenAPIV31SpecValidator(document).validate()  # type: ignore[arg-type]
    return document


PARAMETERS = (
    {"name": "prompt", "annotation": "str"},
    {"name": "size", "annotation": "tuple[int, int] | None", "default": "None"},
    {"name": "steps", "annotation": "int", "default": "20"},
    {"name": "rest", "kind": "var_keyword"},
)


def book(*, described: bool = False) -> RouteBook:
    made = RouteBook()
    made.add_queue(
        QueueRoute(
            prefix="/gpu_worker",
            function="gpu_worker.paint",
            resource="gpu_worker",
            file="gpu_worker.py",
            doc="Paints a picture.",
            parameters=PARAMETERS,
        )
    )
    made.add_queue(QueueRoute(prefix="/c/inc", function="c.C.inc", resource="c", file="c.py"))
    made.add_http(
        HttpRoute(
            method="PUT",
            path="/api/items/{item_id}",
            function="api.put_item",
            resource="api",
            file="api.py",
            parameters=({"name": "item_id", "annotation": "int"}, {"name": "item", "annotation": "dict"}),
        )
    )
    made.add_unavailable(Unavailable(prefix="/broken", file="broken.py", line=3, reason="SyntaxError: oh"))
    return made


def document(described: openapi.Described | None = None) -> dict[str, Any]:
    return validated(openapi.document(book(), title="T", described=described or {}, applications={}))


def test_the_document_is_valid_and_grouped_by_file() -> None:
    made = document()
    assert made["openapi"] == "3.1.0"
    names = [tag["name"] for tag in made["tags"]]
    assert names == ["gpu_worker.py [QB]", "c.py [QB]", "api.py [LB]", "broken.py [unavailable]", "health"]
    assert made["paths"]["/gpu_worker/run_sync"]["post"]["tags"] == ["gpu_worker.py [QB]"]
    assert {"/gpu_worker/run", "/gpu_worker/status/{id}", "/c/inc/run", "/ping"} <= made["paths"].keys()
    assert "broken.py, line 3" in made["info"]["description"]


def test_syntax_alone_gives_a_body_that_can_be_tried() -> None:
    body = document()["paths"]["/gpu_worker/run"]["post"]["requestBody"]["content"]["application/json"]
    inner = body["schema"]["properties"]["input"]
    assert inner["required"] == ["prompt"]
    assert inner["properties"]["steps"] == {"type": "integer", "default": 20}
    assert body["example"] == {"input": {"prompt": "text", "size": None, "steps": 20}}


def test_what_the_import_told_replaces_what_syntax_said() -> None:
    schema = {
        "type": "object",
        "properties": {"item": {"$ref": "#/$defs/Item"}},
        "required": ["item"],
        "$defs": {"Item": {"type": "object", "properties": {"price": {"type": "number"}}}},
    }
    described = {"gpu_worker.paint": {"doc": "Real.", "parameters": schema, "returns": {"type": "string"}}}
    made = document(described)
    post = made["paths"]["/gpu_worker/run_sync"]["post"]
    body = post["requestBody"]["content"]["application/json"]
    assert body["example"] == {"input": {"item": {"price": 1.0}}}
    reference = body["schema"]["properties"]["input"]["properties"]["item"]["$ref"]
    assert reference == "#/components/schemas/Item"
    assert made["components"]["schemas"]["Item"]["properties"] == {"price": {"type": "number"}}
    assert post["description"] == "Real."


def test_two_models_of_one_name_stay_apart() -> None:
    def schema(kind: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"item": {"$ref": "#/$defs/Item"}},
            "$defs": {"Item": {"type": kind}},
        }

    described = {
        "gpu_worker.paint": {"parameters": schema("string")},
        "c.C.inc": {"parameters": schema("integer")},
    }
    made = document(described)
    assert made["components"]["schemas"]["Item"] == {"type": "string"}
    assert made["components"]["schemas"]["Item2"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        ("dict[str, float]", {"type": "object", "additionalProperties": {"type": "number"}}),
        ("Optional[str]", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("Literal['a', 2]", {"enum": ["a", 2]}),
        ("Annotated[bool, 'x']", {"type": "boolean"}),
        ("datetime.datetime", {"type": "string", "format": "date-time"}),
        ("'int'", {"type": "integer"}),
        ("Item", {}),
        ("int | Item", {}),
        ("not python (", {}),
        (None, {}),
    ],
)
def test_annotations_as_they_are_written(annotation: str | None, schema: dict[str, Any]) -> None:
    assert openapi.annotation_schema(annotation) == schema


@given(st.text(max_size=30))
def test_any_text_as_an_annotation_or_default_is_survived(text: str) -> None:
    openapi.syntax_schema([{"name": "x", "annotation": text, "default": text}])


LB = '''
from pydantic import BaseModel
from fastapi import UploadFile
from flashmesh import CpuLiveLoadBalancer, remote
lb = CpuLiveLoadBalancer(name="lb")

class Part(BaseModel):
    name: str

class Item(BaseModel):
    price: float
    parts: list[Part] = []

@remote(lb, method="POST", path="/items/{shop}")
async def add(shop: int, item: Item, note: str = "none") -> Item:
    """Adds an item."""

@remote(lb, method="POST", path="/upload")
async def upload(file: UploadFile, scale: int = 1):
    ...

@remote(lb, method="GET", path="/find")
def find(q: str, limit: int = 3):
    ...
'''


def test_http_routes_are_described_from_their_signatures(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(LB)

    def declare(server: DevServer) -> None:
        for method, path, name in (
            ("POST", "/items/{shop}", "add"),
            ("POST", "/upload", "upload"),
            ("GET", "/find", "find"),
        ):
            server.route(method, "/shop" + path, f"shop.{name}", resource="shop", file="shop.py")

    async def asking() -> Any:
        async with serving(declare, root=tmp_path) as client:
            return (await client.get("/openapi.json")).json

    made = validated(run(asking()))
    add = made["paths"]["/shop/items/{shop}"]["post"]
    assert add["tags"] == ["shop.py [LB]"]
    assert add["description"] == "Adds an item."
    assert [parameter["name"] for parameter in add["parameters"]] == ["shop"]
    body = add["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"item", "note"}
    assert "Part" in made["components"]["schemas"]
    upload = made["paths"]["/shop/upload"]["post"]["requestBody"]["content"]
    assert upload["multipart/form-data"]["schema"]["properties"]["file"] == {"type": "string", "format": "binary"}
    assert [parameter["name"] for parameter in made["paths"]["/shop/find"]["get"]["parameters"]] == ["q", "limit"]


def test_the_docs_page_needs_no_network() -> None:
    async def asking() -> Any:
        async with serving(lambda server: None) as client:
            page = await client.get("/docs")
            assets = [
                await client.get("/docs/assets/" + name)
                for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
            ]
            missing = await client.get("/docs/assets/../../secret")
            return page, assets, missing

    page, assets, missing = run(asking())
    assert page.status == 200
    assert b"http:" not in page.body.replace(b"http://localhost", b"")
    assert b"https:" not in page.body
    assert [asset.status for asset in assets] == [200, 200, 200]
    assert all(len(asset.body) > 1000 for asset in assets)
    assert missing.status == 404


def test_the_project_the_session_knows_shows_in_the_document() -> None:
    function = {"id": "w.f", "doc": "From the import.", "parameters": {"type": "object", "properties": {}}}

    def declare(server: DevServer) -> None:
        server.queue("/w", "w.f", resource="w", file="w.py")

    async def asking() -> Any:
        async with serving(declare) as client:
            client.session.queries["project"] = lambda _: {"resources": {"w": {"functions": [function]}}}
            return (await client.get("/openapi.json")).json

    assert run(asking())["paths"]["/w/run"]["post"]["description"] == "From the import."
