"""The State Manager's routes, and what their answers look like, for the application and its OpenAPI document."""

from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

from flashmesh.gateway.api.operations import Operation, Vocabulary
from flashmesh.gateway.api.schemas import Moment

_REFUSED: Final = {400: "Refusal", 404: "Refusal", 409: "Refusal"}
_UPLOAD: Final = {400: "Refusal", 404: "Refusal", 413: "Refusal", 422: "Refusal", 507: "Refusal"}

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        id="get_manifest",
        method="GET",
        path="/manifest",
        tag="state",
        summary="What serves in an environment: its resources, their functions and addresses",
        queries=("app", "env"),
        headers=("X-Flash-App", "X-Flash-Environment", "X-Flash-Endpoint"),
        responses={200: "Manifest", **_REFUSED},
    ),
    Operation(
        id="query_state",
        method="POST",
        path="/graphql",
        tag="state",
        summary="Queries and mutations of the State Manager, in the words of Flash's clients",
        body="GraphQLRequest",
        headers=("X-Flash-App", "X-Flash-Environment", "X-Flash-Endpoint"),
        responses={
            200: "GraphQLAnswer",
            400: "GraphQLAnswer|Refusal",
            401: "GraphQLAnswer|Refusal",
            403: "GraphQLAnswer|Refusal",
            408: "Refusal",
            409: "Refusal",
            413: "Refusal",
            415: "Refusal",
            422: "Refusal",
        },
    ),
    Operation(
        id="read_state",
        method="GET",
        path="/graphql",
        tag="state",
        summary="Queries of the State Manager; mutations have to be sent by POST",
        queries=("query", "variables", "operationName"),
        headers=("X-Flash-App", "X-Flash-Environment", "X-Flash-Endpoint"),
        responses={
            200: "GraphQLAnswer",
            400: "GraphQLAnswer|Refusal",
            405: "GraphQLAnswer|Refusal",
            409: "Refusal",
            413: "Refusal",
        },
    ),
    Operation(
        id="list_builds",
        method="GET",
        path="/v1/builds",
        tag="state",
        summary="Builds, newest first: of one app, or of all",
        queries=("app",),
        responses={200: "[Build]", **_REFUSED},
    ),
    Operation(
        id="put_artifact",
        method="PUT",
        path="/v1/builds/{buildId}/artifact",
        tag="state",
        summary="Send a build's artifact; its id is the first 12 hex digits of the artifact's SHA-256",
        queries=("app",),
        body="artifact",
        streams_body=True,
        responses={201: "Build", **_UPLOAD, 409: "Refusal"},
    ),
    Operation(
        id="get_artifact",
        method="GET",
        path="/v1/builds/{buildId}/artifact",
        tag="state",
        summary="A build's artifact",
        queries=("app",),
        responses={200: "application/gzip", 404: "Refusal", 422: "Refusal"},
    ),
    Operation(
        id="put_upload",
        method="PUT",
        path="/v1/uploads/{objectKey}",
        tag="state",
        summary="Send an artifact to the address that `prepareFlashArtifactUpload` gave; it needs no token",
        body="artifact",
        streams_body=True,
        responses={200: "Uploaded", **_UPLOAD},
    ),
)


class Manifest(Struct):
    """What serves in an environment. Resources are keyed by name; each has the address of its endpoint."""

    version: str
    generated_at: Moment
    app: str
    environment: str
    build: str | None
    function_registry: dict[str, str]
    resources: dict[str, dict[str, Any]]
    routes: dict[str, dict[str, str]]
    resources_endpoints: dict[str, str]


class Build(Struct, forbid_unknown_fields=True):
    """One packaging of an app."""

    id: str
    app: str
    bytes: int
    createdAt: Moment  # noqa: N815


class Uploaded(Struct, forbid_unknown_fields=True):
    """What was sent. `id` is the build that it will be."""

    id: str


class GraphQLRequest(Struct, forbid_unknown_fields=True):
    """A GraphQL document, what its variables are, and which of its operations is meant."""

    query: str
    variables: dict[str, Any] | None = None
    operationName: str | None = None  # noqa: N815
    extensions: dict[str, Any] | None = None


class GraphQLProblem(Struct):
    """Why a field has no value, or the whole document none."""

    message: str
    path: list[str | int] | UnsetType = UNSET
    extensions: dict[str, Any] | UnsetType = UNSET


class GraphQLAnswer(Struct):
    """`data` is missing when nothing was executed."""

    data: dict[str, Any] | UnsetType | None = UNSET
    errors: list[GraphQLProblem] | UnsetType = UNSET


_TEXT: Final = {"type": "string"}
_SOME: Final = {"type": "string", "minLength": 1}
VOCABULARY: Final = Vocabulary(
    structs=(Manifest, Build, Uploaded, GraphQLRequest, GraphQLAnswer),
    parameters={
        "buildId": ({"type": "string", "pattern": "^[0-9a-f]{12}$"}, "A build"),
        "objectKey": (_TEXT, "Where an artifact may be sent"),
    },
    queries={
        "query": (_SOME, "A GraphQL document"),
        "variables": ({"type": "string", "contentMediaType": "application/json"}, "Its variables, a JSON object"),
        "operationName": (_SOME, "Which of its operations is meant"),
    },
    headers={
        "X-Flash-App": (_TEXT, "The app that is meant"),
        "X-Flash-Environment": (_TEXT, "The environment that is meant"),
        "X-Flash-Endpoint": (_TEXT, "The endpoint that asks, for the count of queries"),
    },
)
