import asyncio
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dev_server_client import Answer, DevClient, run, serving
from dev_session_fake import FakeCall
from lb_isolation import forget_project_modules

from flashmesh.dev.server.app import DevServer
from flashmesh.functions import caller
from flashmesh.functions.errors import Cancelled

HEAD = """
from flashmesh import CpuLiveLoadBalancer, Endpoint, LiveServerless, remote
lb = CpuLiveLoadBalancer(name="routes")
"""


@pytest.fixture(autouse=True)
def _clean_interpreter() -> Iterator[None]:
    """Each project is imported as if the process were fresh."""
    with forget_project_modules():
        yield
    caller.install(None)


def project(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + textwrap.dedent(text))
    return root


def ask(
    root: Path,
    source: str,
    *requests: Callable[[DevClient], Any],
    routes: list[tuple[str, str, str]],
    behaviours: dict[str, Any] | None = None,
    **options: Any,
) -> list[Answer]:
    """Answers of one file `api/routes.py` with these (method, path, function) routes."""
    project(root, {"api/routes.py": source})

    def declare(server: DevServer) -> None:
        for method, path, name in routes:
            server.route(
                method,
                "/api/routes" + path,
                f"api.routes.{name}",
                resource="api_routes",
                file="api/routes.py",
                dependencies=options.pop("dependencies", ()),
            )

    async def asking() -> list[Answer]:
        async with serving(declare, behaviours, root=root, **options) as client:
            return [await request(client) for request in requests]

    found: list[Answer] = run(asking())
    return found


def post(path: str, body: Any = None, **more: Any) -> Callable[[DevClient], Any]:
    return lambda client: client.post("/api/routes" + path, body, **more)


def get(path: str, **more: Any) -> Callable[[DevClient], Any]:
    return lambda client: client.get("/api/routes" + path, **more)


COMPUTE = """
@remote(lb, method="POST", path="/compute")
async def compute(input_data: dict) -> dict:
    return {"result": input_data}
"""


def test_the_seeds_route_runs_its_body_here(tmp_path: Path) -> None:
    """The whole body goes to the one parameter; a body that names the parameter means it."""
    whole, named = ask(
        tmp_path,
        COMPUTE,
        post("/compute", {"x": 1}),
        post("/compute", {"input_data": {"x": 1}}),
        routes=[("POST", "/compute", "compute")],
    )
    assert whole.json == named.json == {"result": {"x": 1}}


def test_keys_of_the_body_are_the_parameters_and_are_typed(tmp_path: Path) -> None:
    source = """
    from dataclasses import dataclass
    from datetime import date

    @dataclass
    class Item:
        name: str
        price: float = 1.5

    @remote(lb, method="POST", path="/order")
    def order(item: Item, day: date, count: int = 2) -> dict:
        return {"total": item.price * count, "day": day.isoformat(), "kind": type(item).__name__}
    """
    good, missing, wrong = ask(
        tmp_path,
        source,
        post("/order", {"item": {"name": "a"}, "day": "2026-11-20"}),
        post("/order", {"item": {"name": "a"}}),
        post("/order", {"item": {"name": "a", "price": "much"}, "day": "2026-11-20"}),
        routes=[("POST", "/order", "order")],
    )
    assert good.json == {"total": 3.0, "day": "2026-11-20", "kind": "Item"}
    assert (missing.status, missing.json["field"]) == (422, "day")
    assert (wrong.status, wrong.json["field"]) == (422, "item.price")
    assert wrong.json["detail"][0]["loc"] == ["body", "item", "price"]


def test_a_pydantic_body_is_the_body_itself(tmp_path: Path) -> None:
    source = """
    from pydantic import BaseModel
    api = Endpoint(name="api", cpu="cpu3g-2-8")

    class User(BaseModel):
        name: str
        age: int

    @api.put("/users/{user_id}")
    async def update(user_id: int, user: User, notify: bool = False):
        return {"id": user_id, "name": user.name, "age": user.age, "notify": notify}
    """
    answer, bad = ask(
        tmp_path,
        source,
        lambda client: client.send("PUT", "/api/routes/users/7", {"user": {"name": "Ada", "age": 36}, "notify": True}),
        lambda client: client.send("PUT", "/api/routes/users/x", {"user": {"name": "Ada", "age": 36}}),
        routes=[("PUT", "/users/{user_id}", "update")],
    )
    assert answer.json == {"id": 7, "name": "Ada", "age": 36, "notify": True}
    assert (bad.status, bad.json["field"]) == (422, "user_id")


def test_path_and_query_parameters(tmp_path: Path) -> None:
    source = """
    api = Endpoint(name="api", cpu="cpu3g-2-8")

    @api.get("/items/{item_id}")
    def item(item_id: int, q: str = "none", tags: list[str] | None = None, limit: int = 3):
        return {"id": item_id, "q": q, "limit": limit}

    @api.post("/search")
    def search(query: dict, limit: int = 10):
        return {"query": query, "limit": limit}

    @api.get("/files/{rest:path}")
    def files(rest: str):
        return rest
    """
    got, posted, deep, head = ask(
        tmp_path,
        source,
        get("/items/5?q=red&limit=9"),
        post("/search?limit=4", {"query": {"a": 1}}),
        get("/files/a/b/c.txt"),
        lambda client: client.send("HEAD", "/api/routes/items/5"),
        routes=[
            ("GET", "/items/{item_id}", "item"),
            ("POST", "/search", "search"),
            ("GET", "/files/{rest:path}", "files"),
        ],
    )
    assert got.json == {"id": 5, "q": "red", "limit": 9}
    assert posted.json == {"query": {"a": 1}, "limit": 4}
    assert deep.json == "a/b/c.txt"
    assert head.status == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_every_verb_works(tmp_path: Path, method: str) -> None:
    source = f"""
    @remote(lb, method="{method}", path="/x")
    async def verb():
        return "{method}"
    """
    (answer,) = ask(
        tmp_path, source, lambda client: client.send(method, "/api/routes/x"), routes=[(method, "/x", "verb")]
    )
    assert answer.json == method


MULTIPART = (
    b'--B\r\nContent-Disposition: form-data; name="data"; filename="a.bin"\r\n\r\n\x00\x01raw\r\n'
    b'--B\r\nContent-Disposition: form-data; name="scale"\r\n\r\n3\r\n'
    b'--B\r\nContent-Disposition: form-data; name="up"; filename="b.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\nhi\r\n--B--\r\n"
)


def test_a_body_sees_the_variables_that_its_resource_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They win over those of the shell. Of two resources that disagree the first has its way, and it is said."""
    source = """
    import os
    from flashmesh import PodTemplate
    first = Endpoint(name="first", env={"FLASH_TEST_A": "declared"})
    second = Endpoint(name="second", env={"FLASH_TEST_A": "other", "FLASH_TEST_B": "b"})
    third = Endpoint(name="third", template=PodTemplate(env=[{"key": "FLASH_TEST_C", "value": "c"}]))

    @first.get("/first")
    def one(): return {name: os.environ.get("FLASH_TEST_" + name) for name in "ABC"}
    @second.get("/second")
    def two(): ...
    @third.get("/third")
    def three(): ...
    """
    monkeypatch.setenv("FLASH_TEST_A", "shell")
    for name in ("FLASH_TEST_B", "FLASH_TEST_C"):
        monkeypatch.setenv(name, "shell")
    routes = [("GET", "/first", "one"), ("GET", "/second", "two"), ("GET", "/third", "three")]
    (answer,) = ask(tmp_path, source, get("/first"), routes=routes)
    assert answer.json == {"A": "declared", "B": "b", "C": "c"}
    assert "FLASH_TEST_A of second is not set" in caplog.text


def test_forms_and_uploads(tmp_path: Path) -> None:
    source = """
    from fastapi import UploadFile

    @remote(lb, method="POST", path="/upload")
    async def upload(data: bytes, up: UploadFile, scale: int = 1):
        return {"size": len(data), "scale": scale, "name": up.filename, "text": (await up.read()).decode()}

    @remote(lb, method="POST", path="/form")
    def form(name: str, age: int):
        return {"name": name, "age": age}
    """
    uploaded, filled, missing = ask(
        tmp_path,
        source,
        post("/upload", MULTIPART, headers={"content-type": "multipart/form-data; boundary=B"}),
        post("/form", b"name=Ada&age=36", headers={"content-type": "application/x-www-form-urlencoded"}),
        post("/form", b"name=Ada", headers={"content-type": "application/x-www-form-urlencoded"}),
        routes=[("POST", "/upload", "upload"), ("POST", "/form", "form")],
    )
    assert uploaded.json == {"size": 5, "scale": 3, "name": "b.txt", "text": "hi"}
    assert filled.json == {"name": "Ada", "age": 36}
    assert (missing.status, missing.json["field"]) == (422, "age")


def test_raw_bytes_and_base64_reach_a_bytes_parameter(tmp_path: Path) -> None:
    source = """
    @remote(lb, method="POST", path="/blob")
    def blob(data: bytes):
        return data[::-1]
    """
    raw, text = ask(
        tmp_path,
        source,
        post(
            "/blob", b"abc", headers={"content-type": "application/octet-stream", "accept": "application/octet-stream"}
        ),
        post("/blob", {"data": "YWJj"}),
        routes=[("POST", "/blob", "blob")],
    )
    assert raw.body == b"cba"
    assert text.json == "Y2Jh"


def test_fastapis_own_parameters_are_left_to_fastapi(tmp_path: Path) -> None:
    source = """
    from typing import Annotated
    from fastapi import Body, Depends, Header, Request, Response

    def who(x_user: Annotated[str, Header()] = "nobody"):
        return x_user

    @remote(lb, method="POST", path="/native")
    async def native(request: Request, response: Response, a: Annotated[int, Body()], b: Annotated[int, Body()],
                     user: str = Depends(who)):
        response.status_code = 201
        response.headers["X-Made"] = "yes"
        return {"sum": a + b, "user": user, "path": request.url.path}

    @remote(lb, method="POST", path="/mixed")
    async def mixed(request: Request, data: dict, user: str = Depends(who)):
        return {"data": data, "user": user, "method": request.method}
    """
    native, mixed = ask(
        tmp_path,
        source,
        post("/native", {"a": 1, "b": 2}, headers={"x-user": "ada"}),
        post("/mixed", {"k": 1}),
        routes=[("POST", "/native", "native"), ("POST", "/mixed", "mixed")],
    )
    assert native.status == 201
    assert native.headers["x-made"] == "yes"
    assert native.json == {"sum": 3, "user": "ada", "path": "/api/routes/native"}
    assert mixed.json == {"data": {"k": 1}, "user": "nobody", "method": "POST"}


def test_streams(tmp_path: Path) -> None:
    source = """
    from fastapi.responses import StreamingResponse

    @remote(lb, method="GET", path="/words")
    def words():
        yield "one "
        yield "two"

    @remote(lb, method="GET", path="/rows")
    async def rows(count: int = 2):
        for n in range(count):
            yield {"n": n}

    @remote(lb, method="GET", path="/own")
    async def own():
        return StreamingResponse(iter([b"a", b"b"]), media_type="text/x-own")

    @remote(lb, method="GET", path="/broken")
    def broken():
        raise ValueError("before the first")
        yield 1
    """
    words, rows, events, own, broken = ask(
        tmp_path,
        source,
        get("/words"),
        get("/rows?count=3"),
        get("/rows", headers={"accept": "text/event-stream"}),
        get("/own"),
        get("/broken"),
        routes=[("GET", f"/{name}", name) for name in ("words", "rows", "own", "broken")],
    )
    assert (words.body, words.headers["content-type"]) == (b"one two", "text/plain; charset=utf-8")
    assert [json.loads(line) for line in rows.body.splitlines()] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert events.body == b'data: {"n":0}\n\ndata: {"n":1}\n\n'
    assert own.body == b"ab"
    assert own.headers["content-type"].startswith("text/x-own")
    assert broken.status == 500


def test_an_exception_is_500_with_the_users_traceback_and_http_exceptions_pass(tmp_path: Path) -> None:
    source = """
    from fastapi import HTTPException

    @remote(lb, method="GET", path="/boom")
    def boom():
        return {}["key"]

    @remote(lb, method="GET", path="/teapot")
    async def teapot():
        raise HTTPException(418, "short and stout")
    """
    boom, teapot = ask(
        tmp_path, source, get("/boom"), get("/teapot"), routes=[("GET", "/boom", "boom"), ("GET", "/teapot", "teapot")]
    )
    assert boom.status == 500
    assert boom.json["error_type"] == "KeyError"
    assert 'return {}["key"]' in boom.json["traceback"]
    assert "flashmesh" not in boom.json["traceback"]
    assert (teapot.status, teapot.json) == (418, {"detail": "short and stout"})


def test_a_result_that_cannot_be_encoded_names_its_type(tmp_path: Path) -> None:
    source = """
    @remote(lb, method="GET", path="/x")
    def x():
        return {"a": [object()]}
    """
    (answer,) = ask(tmp_path, source, get("/x"), routes=[("GET", "/x", "x")])
    assert answer.status == 500
    assert "object" in answer.json["error"]


def test_a_missing_declared_package_is_503_naming_it_and_the_command(tmp_path: Path) -> None:
    source = """
    @remote(lb, method="GET", path="/x", dependencies=["no-such-package>=1"])
    def x():
        import no_such_package
    """
    (answer,) = ask(tmp_path, source, get("/x"), routes=[("GET", "/x", "x")], dependencies=("no-such-package>=1",))
    assert answer.status == 503
    assert "uv pip install 'no-such-package>=1'" in answer.json["error"]


def test_a_file_that_fails_to_import_is_503_and_the_others_work(tmp_path: Path) -> None:
    project(
        tmp_path,
        {
            "good.py": '@remote(lb, method="GET", path="/x")\ndef x():\n    return 1\n',
            "bad.py": 'import absent_module\n@remote(lb, method="GET", path="/x")\ndef x():\n    return 1\n',
            "cut.py": '@remote(lb, method="GET", path="/x")\ndef x(:\n',
        },
    )

    def declare(server: DevServer) -> None:
        for name in ("bad", "cut", "good"):
            server.route("GET", f"/{name}/x", f"{name}.x", resource=name, file=f"{name}.py")

    async def asking() -> Any:
        async with serving(declare, root=tmp_path) as client:
            return [await client.get(f"/{name}/x") for name in ("good", "bad", "cut")]

    good, bad, cut = run(asking())
    assert good.json == 1
    assert bad.status == cut.status == 503
    assert (bad.json["file"], bad.json["line"]) == ("bad.py", 4)
    assert "absent_module" in bad.json["error"]
    assert (cut.json["file"], cut.json["line"]) == ("cut.py", 5)


def test_an_endless_import_is_stopped_and_said_and_queue_routes_do_not_wait_for_it(tmp_path: Path) -> None:
    project(tmp_path, {"slow.py": 'while True:\n    pass\n@remote(lb, method="GET", path="/x")\ndef x():\n    ...\n'})

    def declare(server: DevServer) -> None:
        server.route("GET", "/slow/x", "slow.x", resource="slow", file="slow.py")

    async def asking() -> Any:
        async with serving(declare, root=tmp_path, import_limit_s=0.5) as client:
            waiting = asyncio.ensure_future(client.get("/slow/x"))
            ping = await client.get("/ping")
            assert not waiting.done()
            return ping, await waiting

    ping, slow = run(asking())
    assert ping.status == 200
    assert slow.status == 503
    assert "longer than 0.5 s" in slow.json["error"]


def test_files_of_the_same_name_as_a_stdlib_module_and_odd_paths(tmp_path: Path) -> None:
    route = '@remote(lb, method="GET", path="/x")\ndef x():\n    return __file__.rsplit("/", 1)[-1]\n'
    names = ["queue", "01_start/cpu", "my-api", "class"]
    project(tmp_path, {f"{name}.py": route for name in names})

    def declare(server: DevServer) -> None:
        for name in names:
            server.route("GET", f"/{name}/x", f"{name.replace('/', '.')}.x", resource="r", file=f"{name}.py")

    async def asking() -> Any:
        async with serving(declare, root=tmp_path) as client:
            return [(await client.get(f"/{name}/x")).json for name in names]

    assert run(asking()) == ["queue.py", "cpu.py", "my-api.py", "class.py"]


QUEUED = """
gpu = LiveServerless(name="gpu")

@remote(gpu)
async def heavy(n: int) -> int:
    raise AssertionError("this must run on a worker")

@remote(gpu)
def count(n: int):
    yield n

@remote(lb, method="POST", path="/awaited")
async def awaited(n: int):
    return await heavy(n)

@remote(lb, method="POST", path="/blocking")
def blocking(n: int):
    return heavy.call(n)

@remote(lb, method="POST", path="/in_thread")
def in_thread(n: int):
    import asyncio
    return asyncio.run(heavy(n))

@remote(lb, method="POST", path="/helper")
async def helper(n: int):
    return await awaited(n) + 1

@remote(lb, method="POST", path="/items")
async def items(n: int):
    return [item async for item in count(n)]

@remote(lb, method="POST", path="/spawned")
def spawned(n: int):
    job = heavy.spawn(n)
    return {"id": job.id, "result": job.call.result()}
"""


async def times_ten(call: FakeCall) -> None:
    args, _, _ = msgspec.msgpack.decode(call.frame.payload)
    call.start()
    call.succeed(msgspec.msgpack.encode(args[0] * 10), content_type="application/x-msgpack")


async def counting(call: FakeCall) -> None:
    (n,), _, _ = msgspec.msgpack.decode(call.frame.payload)
    call.start()
    for number in range(n):
        call.raw_item(msgspec.msgpack.encode(number))
    call.succeed(b"", content_type="application/x-msgpack", items=n)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("awaited", 40), ("blocking", 40), ("in_thread", 40), ("helper", 41), ("items", [0, 1, 2, 3])],
)
def test_queue_functions_called_from_a_body_run_on_workers(tmp_path: Path, path: str, expected: Any) -> None:
    (answer,) = ask(
        tmp_path,
        QUEUED,
        post(f"/{path}", {"n": 4}),
        routes=[("POST", f"/{path}", path)],
        behaviours={"api.routes.heavy": times_ten, "api.routes.count": counting},
    )
    assert answer.json == expected, answer.body


def test_a_body_can_spawn_a_job(tmp_path: Path) -> None:
    (answer,) = ask(
        tmp_path,
        QUEUED,
        post("/spawned", {"n": 4}),
        routes=[("POST", "/spawned", "spawned")],
        behaviours={"api.routes.heavy": times_ten},
    )
    assert answer.json["result"] == 40


def test_a_workers_exception_arrives_in_the_body_as_itself(tmp_path: Path) -> None:
    source = QUEUED + textwrap.dedent("""
    @remote(lb, method="POST", path="/careful")
    async def careful(n: int):
        try:
            return await heavy(n)
        except ValueError as error:
            return f"caught {error}"
    """)

    async def refuse(call: FakeCall) -> None:
        call.fail(ValueError("too heavy"))

    (answer,) = ask(
        tmp_path, source, post("/careful", {"n": 1}), routes=[("POST", "/careful", "careful")],
        behaviours={"api.routes.heavy": refuse},
    )  # fmt: skip
    assert answer.json == "caught too heavy"


def test_a_request_that_is_cancelled_cancels_its_calls(tmp_path: Path) -> None:
    async def forever(call: FakeCall) -> None:
        call.start()
        await call.cancelled.wait()
        call.fail(Cancelled())

    source = QUEUED + textwrap.dedent("""
    @remote(lb, method="POST", path="/limited")
    async def limited(n: int):
        import asyncio
        try:
            async with asyncio.timeout(0.05):
                return await heavy(n)
        except TimeoutError:
            return "gave up"
    """)
    project(tmp_path, {"api/routes.py": source})

    def declare(server: DevServer) -> None:
        server.route("POST", "/api/routes/limited", "api.routes.limited", resource="r", file="api/routes.py")

    async def asking() -> Any:
        async with serving(declare, {"api.routes.heavy": forever}, root=tmp_path) as client:
            answer = await client.post("/api/routes/limited", {"n": 1})
            (call,) = client.session.calls.values()
            await asyncio.wait_for(call.cancelled.wait(), 5)
            return answer.json

    assert run(asking()) == "gave up"


def test_bodies_over_the_limit_are_413(tmp_path: Path) -> None:
    (answer,) = ask(
        tmp_path,
        COMPUTE,
        post("/compute", {"x": "y" * 100}),
        routes=[("POST", "/compute", "compute")],
        max_body_bytes=50,
    )
    assert answer.status == 413


def test_malformed_json_is_400(tmp_path: Path) -> None:
    (answer,) = ask(tmp_path, COMPUTE, post("/compute", b"{nope"), routes=[("POST", "/compute", "compute")])
    assert answer.status == 400


def test_wrong_method_and_unknown_path(tmp_path: Path) -> None:
    wrong, unknown = ask(
        tmp_path, COMPUTE, get("/compute"), post("/comput", {}), routes=[("POST", "/compute", "compute")]
    )
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    assert unknown.json["nearest"] == "POST /api/routes/compute"


def test_websockets_of_fastapi_work(tmp_path: Path) -> None:
    source = """
    from fastapi import WebSocket
    api = Endpoint(name="api", cpu="cpu3g-2-8")

    @api.get("/ws/{room}")
    async def chat(websocket: WebSocket, room: str):
        await websocket.accept()
        await websocket.send_text(room + await websocket.receive_text())
        await websocket.close()
    """
    project(tmp_path, {"api/routes.py": source})

    def declare(server: DevServer) -> None:
        server.route("GET", "/api/routes/ws/{room}", "api.routes.chat", resource="r", file="api/routes.py")

    async def asking() -> Any:
        async with serving(declare, root=tmp_path) as client:
            sent: list[Any] = []
            incoming = [{"type": "websocket.receive", "text": "!"}, {"type": "websocket.connect"}]

            async def receive() -> Any:
                return incoming.pop()

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {
                "type": "websocket",
                "path": "/api/routes/ws/blue",
                "raw_path": b"/api/routes/ws/blue",
                "query_string": b"",
                "headers": [(b"host", b"localhost")],
                "root_path": "",
                "scheme": "ws",
                "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 2),
                "subprotocols": [],
            }
            await client.app(scope, receive, send)
            return sent

    sent = run(asking())
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "blue!"
