"""schemathesis over what a real server says of its State Manager: no server error, no answer that is not documented."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi import checks
from server_fixtures import ServerProcess, serving

from flashmesh.gateway.api.openapi import document
from flashmesh.gateway.state.operations import OPERATIONS, VOCABULARY

UNSURE = {"query_state", "read_state"}
"""Of a document that is no GraphQL a schema cannot tell."""
ENCODED = {"put_artifact", "put_upload"}
"""Bytes: that these are no archive is more than a schema tells."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("home")) as made:
        bearer = admin(made.home)
        query = 'mutation { createFlashApp(input: {name: "shop"}) { id } }'
        assert made.request("POST", "/graphql", {"query": query}, Authorization=bearer)[0] == 200
        yield made


def admin(home: Path) -> str:
    (token,) = home.glob("hosts/*/token")
    return f"Bearer {token.read_text().strip()}"


schemathesis.serializer.alias("application/gzip", "application/octet-stream")
schema = schemathesis.openapi.from_dict(document(OPERATIONS, [VOCABULARY]))


@schema.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_documented_and_none_is_a_server_error(case: Any, server: ServerProcess) -> None:
    id = case.operation.definition.raw["operationId"]
    beyond = [checks.ignored_auth]  # the loopback may read without a token
    if id in UNSURE | ENCODED:
        beyond += [checks.positive_data_acceptance]
    if id in UNSURE:
        beyond += [checks.negative_data_rejection]
    if "x-schemathesis-unknown-property" in {name.lower() for name in case.headers}:
        beyond.append(checks.negative_data_rejection)  # headers that nobody asked for are no error in HTTP
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{server.port}",
        timeout=30,
        headers={"Authorization": admin(server.home)},
        excluded_checks=beyond,
    )


def test_the_document_of_the_server_has_these_operations(server: ServerProcess) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/openapi.json", timeout=30) as answer:
        told = json.load(answer)
    wanted = document(OPERATIONS, [VOCABULARY])
    for path, methods in wanted["paths"].items():
        assert told["paths"][path] == methods
    for name in ("Manifest", "Build", "GraphQLAnswer", "GraphQLRequest", "Uploaded"):
        assert told["components"]["schemas"][name] == wanted["components"]["schemas"][name]
