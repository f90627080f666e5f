"""The State Manager of a real server: artifacts over HTTP, Flash's own upload, tokens, crashes, and what it counts."""

import hashlib
import http.client
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_fixtures import PATIENCE_S, ServerProcess, environment, flash, serving, until, write_project

LIMIT = 3_000_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `flash build` packs of a project, larger than other bodies may be."""
    project = write_project(tmp_path_factory.mktemp("project"))
    (project / "weights.bin").write_bytes(os.urandom(200_000))
    built = flash(tmp_path_factory.mktemp("home"), "build", cwd=project)
    assert built.returncode == 0, built.stderr
    return (project / ".flash" / "archive.tar.gz").read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    home = tmp_path_factory.mktemp("home")
    with serving(home, FLASH_SERVER_MAX_ARTIFACT_BYTES=str(LIMIT), FLASH_MAX_BODY_BYTES="100kB") as made:
        yield made


def admin(server: ServerProcess) -> dict[str, str]:
    (token,) = server.home.glob("hosts/*/token")
    return {"Authorization": f"Bearer {token.read_text().strip()}"}


def token(server: ServerProcess, name: str, *options: str) -> dict[str, str]:
    made = server.flash("token", "create", name, *options)
    assert made.returncode == 0, made.stderr
    return {"Authorization": f"Bearer {made.stdout.strip()}"}


def build_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def exchange(server: ServerProcess, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    """A request whose body and answer are bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, headers, encode_chunked=not isinstance(body, bytes | None))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def put(server: ServerProcess, data: Any, id: str, app: str = "shop", **headers: str) -> tuple[int, Any]:
    status, body = exchange(server, "PUT", f"/v1/builds/{id}/artifact?app={app}", data, **{**admin(server), **headers})
    return status, json.loads(body)


def ask(server: ServerProcess, document: str, headers: dict[str, str] | None = None, **variables: Any) -> Any:
    body = {"query": document, "variables": variables}
    status, answer, _ = server.request("POST", "/graphql", body, **(admin(server) if headers is None else headers))
    assert status == 200 and "errors" not in answer, answer
    return answer["data"]


def artifacts(server: ServerProcess) -> Path:
    return server.data / "artifacts"


def test_an_artifact_is_sent_listed_and_fetched(server: ServerProcess, archive: bytes) -> None:
    id = build_id(archive)
    status, made = put(server, archive, id)
    assert (status, made["id"], made["app"], made["bytes"]) == (201, id, "shop", len(archive))
    status, listed, _ = server.request("GET", "/v1/builds?app=shop", **admin(server))
    assert (status, listed) == (200, [made])
    path = f"/v1/builds/{id}/artifact"
    assert exchange(server, "GET", path, **admin(server)) == (200, archive)
    assert exchange(server, "HEAD", path, **admin(server)) == (200, b"")
    assert exchange(server, "HEAD", f"{path}?app=bank", **admin(server))[0] == 404
    manifest = ask(server, "query($id: String!) { flashBuild(flashBuildId: $id) { manifest } }", id=id)
    assert list(manifest["flashBuild"]["manifest"]["resources"]) == ["jobs"]


def test_an_artifact_may_be_sent_in_chunks(server: ServerProcess, archive: bytes) -> None:
    chunks = (archive[start : start + 7000] for start in range(0, len(archive), 7000))
    status, made = put(server, chunks, build_id(archive), **{"Transfer-Encoding": "chunked"})
    assert (status, made["bytes"]) == (201, len(archive))


def test_an_artifact_that_is_not_what_it_says_is_refused(server: ServerProcess, archive: bytes) -> None:
    id = build_id(archive)
    for data, said, wanted in (
        (archive[:-5], id, "ARTIFACT_REFUSED"),
        (archive, "000000000000", "ARTIFACT_REFUSED"),
        (archive, "nothing", "ARTIFACT_REFUSED"),
        (b"no archive", build_id(b"no archive"), "HOSTILE_ARTIFACT"),
    ):
        status, refused = put(server, data, said)
        assert (status, refused["error"]) == (422, wanted)
    assert not (artifacts(server) / f"{build_id(b'no archive')}.tar.gz").exists()
    assert not list(artifacts(server).glob("*.part"))
    status, refused = put(server, archive, id, app="..")
    assert (status, refused["error"]) == (400, "BAD_NAME")
    status, body = exchange(server, "PUT", f"/v1/builds/{id}/artifact", archive, **admin(server))
    assert (status, json.loads(body)["details"]) == (
        400,
        ["app: `app` is missing: say whose build it is with `?app=`."],
    )


def test_an_artifact_beyond_the_limit_is_refused_at_once_and_while_it_comes(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
        client.sendall(head(server, f"Content-Length: {LIMIT + 1}"))
        assert b" 413 " in client.recv(65536)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
        client.sendall(head(server, "Transfer-Encoding: chunked"))
        piece = b"%x\r\n%b\r\n" % (500_000, bytes(500_000))
        for _ in range(LIMIT // 500_000 + 1):
            client.sendall(piece)
        answer = b""
        while b"}" not in answer:
            answer += client.recv(65536)
    assert b" 413 " in answer and b"FLASH_SERVER_MAX_ARTIFACT_BYTES" in answer
    until(lambda: not list(artifacts(server).glob("*.part")), "the end of the upload")


def test_whoever_goes_on_sending_what_was_refused_is_cut_off(server: ServerProcess) -> None:
    lines = "PUT /v1/builds/0123456789ab/artifact HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
        client.sendall(lines.encode())
        assert b" 401 " in client.recv(65536)
        with pytest.raises(ConnectionError):
            for _ in range(1000):  # of 100 kB, the limit of other bodies
                client.sendall(b"%x\r\n%b\r\n" % (100_000, bytes(100_000)))
    assert not list(artifacts(server).glob("*.part"))


def head(server: ServerProcess, *lines: str) -> bytes:
    own = [f"{name}: {value}" for name, value in admin(server).items()]
    text = ["PUT /v1/builds/0123456789ab/artifact?app=shop HTTP/1.1", "Host: localhost", *own, *lines, "", ""]
    return "\r\n".join(text).encode()


def test_other_bodies_keep_their_limit(server: ServerProcess) -> None:
    status, answer, _ = server.request(
        "POST", "/graphql", {"query": "{ flashApps { id } }", "variables": {"x": "x" * 200_000}}
    )
    assert (status, answer["error"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_client_that_leaves_half_way_leaves_nothing_behind(server: ServerProcess, archive: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
        client.sendall(head(server, "Content-Length: 2000000") + bytes(1_500_000))
        until(lambda: list(artifacts(server).glob("*.part")), "the upload's begin")
    until(lambda: not list(artifacts(server).glob("*.part")), "the upload's end")
    assert put(server, archive, build_id(archive))[0] == 201


def test_two_uploads_of_one_build_at_once_are_both_answered(server: ServerProcess, archive: bytes) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(put(server, archive, build_id(archive))[0])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [201] * 4


def test_a_deploys_paths_need_an_admin(server: ServerProcess, archive: bytes) -> None:
    caller = token(server, "caller")
    path = f"/v1/builds/{build_id(archive)}/artifact"
    for headers, status in (({}, 401), (caller, 403)):
        assert exchange(server, "PUT", f"{path}?app=shop", b"x", **headers)[0] == status
        assert exchange(server, "GET", path, **headers)[0] == status
        assert exchange(server, "GET", "/v1/builds", **headers)[0] == status
    assert ask(server, "{ myself { id } }", caller) == {"myself": {"id": "caller"}}
    assert ask(server, "{ myself { id } }", {}) == {"myself": {"id": "local"}}


def test_a_page_of_another_site_gets_nothing(server: ServerProcess) -> None:
    status, _, _ = server.request("POST", "/graphql", {"query": "{ flashApps { id } }"}, Origin="https://evil.example")
    assert status == 403


def test_flashs_client_uploads_an_artifact(server: ServerProcess, archive: bytes) -> None:
    app = ask(server, 'mutation { createFlashApp(input: {name: "flash"}) { id } }')["createFlashApp"]["id"]
    prepared = ask(
        server,
        """mutation($input: PrepareFlashArtifactUploadInput!) {
            prepareFlashArtifactUpload(input: $input) { uploadUrl objectKey expiresAt } }""",
        input={"flashAppId": app, "tarballSize": len(archive)},
    )["prepareFlashArtifactUpload"]
    root, _, path = prepared["uploadUrl"].partition("/v1/")
    assert root == f"http://127.0.0.1:{server.port}"
    finalize = """mutation($input: FinalizeFlashArtifactUploadInput!) {
        finalizeFlashArtifactUpload(input: $input) { id manifest } }"""
    wanted = {"flashAppId": app, "objectKey": prepared["objectKey"], "manifest": {}}
    body = {"query": finalize, "variables": {"input": wanted}}
    assert server.request("POST", "/graphql", body, **admin(server))[1]["errors"][0]["extensions"] == {
        "code": "UPLOAD_NOT_FOUND"
    }
    status, answer = exchange(server, "PUT", "/v1/" + path, archive)  # without a token
    assert (status, json.loads(answer)) == (200, {"id": build_id(archive)})
    assert exchange(server, "PUT", "/v1/" + path, archive)[0] == 404  # it counts once
    assert exchange(server, "PUT", "/v1/uploads/" + "A" * 32, archive)[0] == 404
    build = ask(server, finalize, input=wanted)["finalizeFlashArtifactUpload"]
    assert build["id"] == build_id(archive)
    assert "jobs" in build["manifest"]["resources"]
    fetched = ask(server, "query($id: String!) { flashApp(flashAppId: $id) { flashBuilds { id objectKey } } }", id=app)
    assert fetched["flashApp"]["flashBuilds"] == [{"id": build["id"], "objectKey": build["id"]}]


def test_the_document_describes_the_state_manager(server: ServerProcess) -> None:
    _, document, _ = server.request("GET", "/openapi.json")
    described = {
        (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if operation["tags"] == ["state"]
    }
    assert described == {
        ("get", "/manifest"),
        ("get", "/graphql"),
        ("post", "/graphql"),
        ("get", "/v1/builds"),
        ("put", "/v1/builds/{buildId}/artifact"),
        ("get", "/v1/builds/{buildId}/artifact"),
        ("put", "/v1/uploads/{objectKey}"),
    }


def test_a_server_that_nobody_asks_does_not_import_the_graphql_library() -> None:
    code = (
        "import sys, flashmesh.gateway.server, flashmesh.gateway.assemble, flashmesh.gateway.state.assemble;"
        "print([name for name in ('graphql', 'starlette') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_was_made_is_there_after_a_kill_and_half_an_upload_is_not(tmp_path: Path, archive: bytes) -> None:
    with serving(tmp_path / "home") as first:
        assert put(first, archive, build_id(archive))[0] == 201
        ask(first, 'mutation { createFlashApp(input: {name: "bank"}) { id } }')
        with socket.create_connection(("127.0.0.1", first.port), timeout=PATIENCE_S) as client:
            client.sendall(head(first, "Content-Length: 2000000") + bytes(1_500_000))
            until(lambda: list(artifacts(first).glob("*.part")), "the upload's begin")
            first.kill()
    with serving(tmp_path / "home") as second:
        assert ask(second, "{ flashApps { name flashBuilds { id } } }")["flashApps"] == [
            {"name": "bank", "flashBuilds": []},
            {"name": "shop", "flashBuilds": [{"id": build_id(archive)}]},
        ]
        assert not list(artifacts(second).glob("*.part"))
        assert exchange(second, "GET", f"/v1/builds/{build_id(archive)}/artifact", **admin(second)) == (200, archive)
        assert (second.data / "server.db").stat().st_mode & 0o077 == 0


def test_a_damaged_state_keeps_the_server_from_starting_and_says_what_to_do(tmp_path: Path, archive: bytes) -> None:
    home = tmp_path / "home"
    with serving(home) as server:
        assert put(server, archive, build_id(archive))[0] == 201
        database = server.data / "server.db"
        assert server.stop() == 0
    connection = sqlite3.connect(database)
    connection.execute("UPDATE state_builds SET manifest = CAST('{\"cut' AS BLOB)")
    connection.commit()
    connection.close()
    command = [str(Path(sys.executable).with_name("flash")), "server", "--port", "0"]
    ended = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "state_builds" in ended.stderr and "move server.db* away" in ended.stderr
    copy = re.search(r"A copy is at (\S+)\. ", ended.stderr)
    assert copy is not None and Path(copy[1]).is_file()


def test_queries_of_the_manifest_are_counted(server: ServerProcess) -> None:
    query = "query($id: String!) { flashBuild(flashBuildId: $id) { manifest } }"
    (build, *_), *_ = [server.request("GET", "/v1/builds", **admin(server))[1]]
    ask(server, query, {**admin(server), "X-Flash-Endpoint": "gpu-0a1b2c3d"}, id=build["id"])
    text = server.request("GET", "/metrics", **admin(server))[1]
    assert 'flash_manifest_queries_total{endpoint="gpu-0a1b2c3d"} 1' in text
