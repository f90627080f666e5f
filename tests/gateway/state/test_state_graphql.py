"""What the State Manager answers in GraphQL and as /manifest, to whom, and how much of it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from state_fixtures import BUILD, OTHER_BUILD, State, entry, plain_unpack

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.http import Answer, Request
from flashmesh.gateway.state import faces
from flashmesh.gateway.state.artifacts import ArtifactStore
from flashmesh.gateway.state.asked import MAX_MANIFESTS
from flashmesh.gateway.state.assemble import StateParts
from flashmesh.gateway.state.builds import Builds
from flashmesh.gateway.state.faces import StateFaces
from flashmesh.gateway.state.records import Environment

MANIFEST = {"version": "1.0", "project_name": "shop", "resources": {"gpu": {"file_path": "gpu.py"}}}
GRANTS = {
    "root": Grant(name="root", id="1", scope="admin"),
    "shopkeeper": Grant(name="shopkeeper", id="2", scope="admin", app="shop"),
    "caller": Grant(name="caller", id="3", scope="call"),
    "shop": Grant(name="shop", id="4", scope="peer", app="shop", environment="production"),
    "bank": Grant(name="bank", id="5", scope="peer", app="bank", environment="production"),
}


class Deployer:
    """Takes note of what shall be deployed."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    async def deploy(self, app: str, environment: str, build: str, **more: Any) -> None:
        self.asked.append((app, environment, build, more))


class Faces:
    def __init__(self, state: State, folder: Path) -> None:
        self.state = state
        artifacts = ArtifactStore(folder, unpack=plain_unpack)
        self.deployer = Deployer()
        parts = StateParts(manager=state.manager, artifacts=artifacts, builds=Builds(state.manager, artifacts))
        self.made = StateFaces(parts=parts, grant=GRANTS.get, deployer=self.deployer)

    def post(self, body: bytes, by: str = "root", **headers: str) -> Answer:
        sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        request = Request(b"POST", b"/graphql", b"", {b"host": b"localhost:7470", **sent}, body, by)
        return self.state.run(self.made.graphql(request))

    def ask(self, document: str, by: str = "root", *, status: int = 200, **variables: Any) -> dict[str, Any]:
        answer = self.post(json.dumps({"query": document, "variables": variables}).encode(), by)
        assert answer.status == status, answer.body
        return dict(json.loads(answer.body))

    def data(self, document: str, by: str = "root", **variables: Any) -> Any:
        found = self.ask(document, by, **variables)
        assert "errors" not in found, found
        return found["data"]

    def error(self, document: str, by: str = "root", *, status: int = 200, **variables: Any) -> tuple[str, str]:
        """Code and message of the first one."""
        first = self.ask(document, by, status=status, **variables)["errors"][0]
        return first.get("extensions", {}).get("code", ""), first["message"]

    def get(self, query: Mapping[str, str], by: str = "root") -> Answer:
        sent = urlencode(query).encode()
        return self.state.run(self.made.graphql_by_get(Request(b"GET", b"/graphql", sent, {}, b"", by)))

    def manifest(self, query: str = "", by: str = "root", **headers: str) -> dict[str, Any]:
        sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        request = Request(b"GET", b"/manifest", query.encode(), sent, b"", by)
        return dict(json.loads(self.state.run(self.made.manifest(request)).body))


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Faces]:
    state = State(tmp_path / "server.db")
    yield Faces(state, tmp_path / "artifacts")
    state.close()


def deploy(asked: Faces, app: str = "shop", environment: str = "production", build: str = BUILD) -> Environment:
    manager, run = asked.state.manager, asked.state.run
    place = run(manager.ensure(app, environment))
    run(manager.add_build(app, build, MANIFEST, bytes=1000))
    begun = run(manager.begin(app, environment, build, wanted=MANIFEST, env={"gpu.py|": {"KEY": "s3cret"}}, by="ada"))
    said = entry(build, endpoint_id=f"gpu-{app}-{environment}")
    run(manager.record(place.id, "gpu.py|", said, name="gpu", env={"KEY": "s3cret"}))
    run(manager.finish(begun.id, "succeeded"))
    return manager.environment(app, environment)


def test_flashs_client_finds_a_manifest_by_environment_and_build(asked: Faces) -> None:
    place = deploy(asked)
    environment = asked.data(
        """query getFlashEnvironment($flashEnvironmentId: String!) {
            flashEnvironment(flashEnvironmentId: $flashEnvironmentId) {
                id name state activeBuildId createdAt endpoints { id name } networkVolumes { id name } } }""",
        "shop",
        flashEnvironmentId=place.id,
    )["flashEnvironment"]
    assert environment == {
        "id": place.id,
        "name": "production",
        "state": "HEALTHY",
        "activeBuildId": BUILD,
        "createdAt": "2023-11-14T22:13:20Z",
        "endpoints": [{"id": "gpu-shop-production", "name": "gpu"}],
        "networkVolumes": [],
    }
    build = asked.data(
        "query getFlashBuild($input: String!) { flashBuild(flashBuildId: $input) { id manifest } }",
        "shop",
        input=environment["activeBuildId"],
    )["flashBuild"]
    assert build["manifest"] == asked.state.manager.manifest("shop", "production")
    assert build["manifest"]["resources_endpoints"] == {"gpu": "http://127.0.0.1:7001/gpu"}


def test_a_build_in_two_environments_has_the_manifest_of_the_one_that_asks(asked: Faces) -> None:
    production, staging = deploy(asked), deploy(asked, environment="staging")
    document = (
        "query($id: String!, $env: String) { flashBuild(flashBuildId: $id, flashEnvironmentId: $env) { manifest } }"
    )

    def environment_of(by: str = "root", **more: Any) -> str:
        return str(asked.data(document, by, id=BUILD, **more)["flashBuild"]["manifest"]["environment"])

    assert environment_of() == "production"
    assert environment_of(env=staging.id) == "staging"
    assert environment_of(env=production.id) == "production"
    GRANTS["stage"] = Grant(name="stage", id="9", scope="peer", app="shop", environment="staging")
    try:
        assert environment_of("stage") == "staging"
    finally:
        del GRANTS["stage"]
    body = json.dumps({"query": document, "variables": {"id": BUILD}}).encode()
    found = json.loads(asked.post(body, x_flash_environment="staging").body)
    assert found["data"]["flashBuild"]["manifest"]["environment"] == "staging"


def test_apps_environments_and_builds_are_listed_as_flashs_client_asks(asked: Faces) -> None:
    deploy(asked)
    deploy(asked, app="bank")
    document = """{ myself { id flashApps { id name flashEnvironments { id name state createdAt activeBuildId }
        flashBuilds { id objectKey createdAt } } endpoints { id } } }"""
    everything = asked.data(document)["myself"]
    assert [app["name"] for app in everything["flashApps"]] == ["bank", "shop"]
    assert everything["flashApps"][1]["flashEnvironments"][0]["activeBuildId"] == BUILD
    assert everything["flashApps"][1]["flashBuilds"][0]["id"] == BUILD
    assert everything["endpoints"] == [{"id": "gpu-bank-production"}, {"id": "gpu-shop-production"}]
    own = asked.data(document, "bank")["myself"]
    assert (own["id"], [app["name"] for app in own["flashApps"]]) == ("bank", ["bank"])
    assert own["endpoints"] == [{"id": "gpu-bank-production"}]


def test_a_token_of_another_app_sees_nothing_of_this_one(asked: Faces) -> None:
    place = deploy(asked)
    deploy(asked, app="bank", build=OTHER_BUILD)
    for document, variables in (
        ("query($x: String!) { flashEnvironment(flashEnvironmentId: $x) { name } }", {"x": place.id}),
        ("query($x: String!) { flashApp(flashAppId: $x) { name } }", {"x": place.app_id}),
        ("query($x: String!) { flashAppByName(flashAppName: $x) { name } }", {"x": "shop"}),
        ("query($x: String!) { flashBuild(flashBuildId: $x) { manifest } }", {"x": BUILD}),
        (
            "query($x: FlashEnvironmentByNameInput!) { flashEnvironmentByName(input: $x) { name } }",
            {"x": {"flashAppName": "shop", "name": "production"}},
        ),
    ):
        assert asked.error(document, "bank", **variables)[0].endswith("_NOT_FOUND"), document
        asked.data(document, "shop", **variables)
    with pytest.raises(FlashmeshError) as refused:
        asked.manifest("app=shop", "bank")
    assert refused.value.status == 403


def test_a_mutation_needs_an_admin(asked: Faces) -> None:
    document = 'mutation { createFlashApp(input: {name: "shop"}) { id } }'
    assert asked.error(document, "", status=401)[0] == "UNAUTHORIZED"
    for by in ("caller", "shop"):
        assert asked.error(document, by, status=403)[0] == "FORBIDDEN"
    sly = f"query harmless {{ flashApps {{ id }} }} {document.replace('mutation', 'mutation harmful', 1)}"
    answer = asked.post(json.dumps({"query": sly, "operationName": "harmful"}).encode(), "caller")
    assert answer.status == 403
    assert asked.state.manager.apps() == []
    assert asked.get({"query": document}).status == 405
    assert asked.state.manager.apps() == []
    asked.data(document, "root")
    assert [app.name for app in asked.state.manager.apps()] == ["shop"]


def test_queries_may_be_asked_with_get(asked: Faces) -> None:
    deploy(asked)
    query = "query a($n: String!) { flashAppByName(flashAppName: $n) { name } } query b { flashApps { id } }"
    answer = asked.get({"query": query, "variables": '{"n": "shop"}', "operationName": "a"})
    assert json.loads(answer.body) == {"data": {"flashAppByName": {"name": "shop"}}}


def test_an_app_an_environment_and_a_deployment_are_made_by_mutations(asked: Faces) -> None:
    app = asked.data('mutation { createFlashApp(input: {name: "shop"}) { id name } }')["createFlashApp"]
    place = asked.data(
        "mutation($input: CreateFlashEnvironmentInput!) { createFlashEnvironment(input: $input) { id name state } }",
        input={"flashAppId": app["id"], "name": "staging"},
    )["createFlashEnvironment"]
    assert (place["name"], place["state"]) == ("staging", "EMPTY")
    found = asked.data(
        "mutation($input: DeployBuildToEnvironmentInput!) { deployBuildToEnvironment(input: $input) { id } }",
        input={"flashEnvironmentId": place["id"], "flashBuildId": BUILD},
    )
    assert found == {"deployBuildToEnvironment": {"id": place["id"]}}
    assert asked.deployer.asked == [("shop", "staging", BUILD, {"given": {}, "replace": True, "by": "root"})]
    asked.data("mutation($id: String!) { deleteFlashEnvironment(flashEnvironmentId: $id) }", id=place["id"])
    asked.data("mutation($id: String!) { deleteFlashApp(flashAppId: $id) }", id=app["id"])
    assert asked.state.manager.apps() == []


def test_what_serves_cannot_be_deleted(asked: Faces) -> None:
    place = deploy(asked)
    code, message = asked.error(
        "mutation($id: String!) { deleteFlashEnvironment(flashEnvironmentId: $id) }", id=place.id
    )
    assert (code, "flash undeploy --all" in message) == ("STILL_DEPLOYED", True)


UPDATE = """mutation updateFlashBuildManifest($input: UpdateFlashBuildManifestInput!) {
    updateFlashBuildManifest(input: $input) { id manifest } }"""


def test_flashs_client_writes_a_manifest_of_what_it_provisioned_itself(asked: Faces) -> None:
    manager, run = asked.state.manager, asked.state.run
    run(manager.ensure("shop", "production"))
    run(manager.add_build("shop", BUILD, MANIFEST))
    written = {**MANIFEST, "resources": {"gpu": {"endpoint_url": "https://x.api.runpod.ai", "status": "deployed"}}}
    found = asked.data(UPDATE, input={"flashBuildId": BUILD, "manifest": written})["updateFlashBuildManifest"]
    assert found == {"id": BUILD, "manifest": written}
    code, _ = asked.error(UPDATE, input={"flashBuildId": BUILD, "manifest": []})
    assert code == "VALIDATION_ERROR"
    asked.state.restart()
    assert asked.state.manager.published("shop", BUILD) == written
    assert asked.state.manager.build_manifest("shop", BUILD) == MANIFEST


def test_what_a_client_writes_does_not_hide_what_serves_here(asked: Faces) -> None:
    deploy(asked)
    theirs = {"resources": {"gpu": {"endpoint_url": "https://evil.example", "note": "x"}}, "mine": 1}
    found = asked.data(UPDATE, input={"flashBuildId": BUILD, "manifest": theirs})["updateFlashBuildManifest"]
    manifest = found["manifest"]
    assert manifest["resources"]["gpu"]["endpoint_url"] == "http://127.0.0.1:7001/gpu"
    assert (manifest["resources"]["gpu"]["note"], manifest["mine"]) == ("x", 1)


def test_values_of_variables_are_shown_nowhere(asked: Faces) -> None:
    place = deploy(asked)
    everything = asked.data(
        """query($env: String!) { flashApps { name flashBuilds { id } } flashEnvironment(flashEnvironmentId: $env) {
            manifest activeBuild { id manifest objectKey bytes } activeArtifact { objectKey downloadUrl }
            endpoints { id name url status error } flashDeployments { id number kind status error by } } }""",
        env=place.id,
    )
    assert everything["flashEnvironment"]["flashDeployments"][0]["by"] == "ada"
    assert "s3cret" not in json.dumps(everything)
    assert "s3cret" not in json.dumps(asked.manifest())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"query": 1}', 400),
        (b'{"query": ""}', 400),
        (b'{"query": "{"}', 400),
        (b'{"query": "{flashApps{id}}", "variables": []}', 400),
        (b'{"query": "{nope}"}', 200),
        (b'{"query": "{flashApps{id}}", "operationName": "other"}', 200),
        (b'{"query": "fragment a on FlashApp {id}"}', 200),
        (b'{"query": "query($x: String!) {flashApp(flashAppId: $x){id}}"}', 200),
        (b'{"query": "subscription {x}"}', 200),
    ],
)
def test_what_is_not_graphql_is_4xx_and_its_errors_are_200(asked: Faces, body: bytes, status: int) -> None:
    try:
        answer = asked.post(body)
    except FlashmeshError as error:
        assert error.status == status
    else:
        assert answer.status == status
        assert json.loads(answer.body)["errors"][0]["message"]


def nested(depth: int) -> str:
    """So many fields deep, the innermost a leaf."""
    inner = "id"
    for level in range(depth - 1):
        inner = f"flashApps {{ {inner} }}" if level % 2 == depth % 2 else f"x: flashApps {{ {inner} }}"
    return f"{{ {inner} }}"


def test_a_query_too_deep_is_refused(asked: Faces) -> None:
    assert asked.error(nested(13))[0] == "QUERY_TOO_LARGE"
    assert asked.error(nested(12))[0] == ""  # looked at, and wrong in another way
    assert asked.error("{" * 3000, status=400)[0] == "MALFORMED_REQUEST"
    assert asked.ask("{ a" * 3000 + "}" * 3000, status=400)["errors"]


def test_a_query_of_too_many_fields_is_refused(asked: Faces) -> None:
    assert asked.data("{" + " ".join(f"a{n}: flashApps {{ id }}" for n in range(500)) + "}")
    assert asked.error("{" + " ".join(f"a{n}: flashApps {{ id }}" for n in range(501)) + "}")[0] == "QUERY_TOO_LARGE"


def test_fragments_of_fragments_are_counted_without_being_spread(asked: Faces) -> None:
    fragments = " ".join(
        f"fragment f{n} on Query {{ ...f{n + 1} a{n}: flashApps {{ id }} ...f{n + 1} }}" for n in range(60)
    )
    bomb = f"{{ ...f0 }} {fragments} fragment f60 on Query {{ flashApps {{ id }} }}"
    assert asked.error(bomb)[0] == "QUERY_TOO_LARGE"
    assert "itself" in asked.error("{ ...a } fragment a on Query { ...a }")[1]


def test_a_document_too_large_is_refused(asked: Faces) -> None:
    body = json.dumps({"query": "{ flashApps { id } } #" + "x" * faces.MAX_DOCUMENT_BYTES}).encode()
    with pytest.raises(FlashmeshError) as refused:
        asked.post(body)
    assert refused.value.status == 413


def test_only_so_many_manifests_are_answered_at_once(asked: Faces) -> None:
    place = deploy(asked)
    aliases = " ".join(f"a{n}: manifest" for n in range(MAX_MANIFESTS + 1))
    code, _ = asked.error(
        f"query($x: String!) {{ flashEnvironment(flashEnvironmentId: $x) {{ {aliases} }} }}", x=place.id
    )
    assert code == "ANSWER_TOO_LARGE"


def test_only_so_long_lists_are_answered_at_once(asked: Faces) -> None:
    place = deploy(asked)
    for number in range(200):
        asked.state.run(asked.state.manager.record(place.id, f"f{number}.py|", entry(), name=f"f{number}"))
    inner = "flashEnvironments { endpoints { id } }"
    assert asked.data("{" + " ".join(f"a{n}: flashApps {{ {inner} }}" for n in range(40)) + "}")
    code, _ = asked.error("{" + " ".join(f"a{n}: flashApps {{ {inner} }}" for n in range(60)) + "}")
    assert code == "ANSWER_TOO_LARGE"


def test_a_token_of_one_app_changes_that_one_only(asked: Faces) -> None:
    create = "mutation($name: String!) { createFlashApp(input: {name: $name}) { id } }"
    assert asked.error(create, "shopkeeper", name="bank")[0] == "FORBIDDEN"
    app = asked.data(create, "shopkeeper", name="shop")["createFlashApp"]["id"]
    bank = asked.data(create, name="bank")["createFlashApp"]["id"]
    delete = "mutation($id: String!) { deleteFlashApp(flashAppId: $id) }"
    assert asked.error(delete, "shopkeeper", id=bank)[0] == "APP_NOT_FOUND"
    asked.data(delete, "shopkeeper", id=app)
    assert [one.name for one in asked.state.manager.apps()] == ["bank"]


def test_the_schema_can_be_asked_for(asked: Faces) -> None:
    from graphql import build_client_schema, get_introspection_query, print_schema

    found = asked.data(get_introspection_query(descriptions=True))
    assert "deployBuildToEnvironment" in print_schema(build_client_schema(found))


def test_a_fault_of_ours_is_logged_and_not_told(
    asked: Faces, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("the password is 123")

    monkeypatch.setattr(asked.state.manager, "apps", broken)
    code, message = asked.error("{ flashApps { id } }")
    assert (code, "password" in message) == ("INTERNAL", False)
    assert "the password is 123" in caplog.text


def test_the_manifest_is_of_the_scope_that_is_meant(asked: Faces) -> None:
    deploy(asked)
    assert asked.manifest()["environment"] == "production"
    deploy(asked, environment="staging")
    assert asked.manifest()["environment"] == "production"
    assert asked.manifest("env=staging")["environment"] == "staging"
    assert asked.manifest(x_flash_environment="staging")["environment"] == "staging"
    deploy(asked, app="bank")
    with pytest.raises(FlashmeshError, match="bank/production, shop/production") as refused:
        asked.manifest()
    assert refused.value.status == 409
    assert asked.manifest("app=bank")["app"] == "bank"
    assert asked.manifest(by="bank")["app"] == "bank"
    assert asked.manifest(by="shop")["app"] == "shop"


def test_queries_of_manifests_are_counted_by_who_asks(asked: Faces) -> None:
    deploy(asked)
    asked.manifest(x_flash_endpoint="gpu-1")
    asked.manifest(x_flash_endpoint="gpu-1")
    asked.manifest(x_flash_endpoint="<script>")
    query = json.dumps({"query": '{ flashBuild(flashBuildId: "' + BUILD + '") { manifest } }'}).encode()
    asked.post(query, x_flash_endpoint="cpu-1")
    asked.data("{ flashApps { id } }")
    assert {labels["endpoint"]: count for _, _, _, labels, count in asked.made.samples()} == {
        "": 1,
        "cpu-1": 1,
        "gpu-1": 2,
    }


NAMED = (("first", "a"), ("second", "a"), ("third", "c"))


def test_mutations_of_one_request_run_one_after_the_other(asked: Faces) -> None:
    made = " ".join(f'{alias}: createFlashApp(input: {{name: "{name}"}}) {{ name }}' for alias, name in NAMED)
    found = asked.ask(f"mutation {{ {made} }}")
    assert [error["path"] for error in found["errors"]] == [["second"]]
    assert found["data"] == {"first": {"name": "a"}, "second": None, "third": {"name": "c"}}
    assert [app.name for app in asked.state.manager.apps()] == ["a", "c"]
