"""Executes GraphQL over the State Manager. Imported, with graphql-core, when the first such request comes."""

import asyncio
import dataclasses
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import graphql
from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLObjectType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
)

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.state.asked import Asked
from flashmesh.gateway.state.query_limits import MAX_TOKENS, excess
from flashmesh.gateway.state.records import AppNotFound, BuildNotFound, EnvironmentNotFound
from flashmesh.gateway.state.resolvers import RESOLVERS
from flashmesh.gateway.state.schema import SDL

log = logging.getLogger("flashmesh.server")
_OUR_FAULT: Final = "The server failed to answer this; its log says why."
_FLASH_SAYS: Final[Mapping[type[FlashmeshError], str]] = {
    AppNotFound: "App not found",
    EnvironmentNotFound: "Environment not found",
    BuildNotFound: "Build not found",
}
"""Words that Flash's clients look for in a message."""


class NotGraphQL(FlashmeshError, ValueError):
    """The document is not GraphQL."""

    code = "MALFORMED_REQUEST"
    status = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A document that was parsed, and the operation of it that shall be executed."""

    node: DocumentNode
    operation: OperationType | None
    """None: there is no such operation."""

    @property
    def changes(self) -> bool:
        return self.operation is not OperationType.QUERY


def parse(text: str, operation: str | None) -> Document:
    """Raises NotGraphQL."""
    try:
        node = graphql.parse(text, no_location=False, max_tokens=MAX_TOKENS)
    except GraphQLError as error:
        raise NotGraphQL(f"{error.message} {_where(error)}".strip()) from error
    except RecursionError as error:
        raise NotGraphQL("The document is nested too deep to be read.") from error
    found = graphql.get_operation_ast(node, operation or None)
    return Document(node, found.operation if isinstance(found, OperationDefinitionNode) else None)


async def execute(
    document: Document, asked: Asked, *, variables: Mapping[str, Any] | None, operation: str | None
) -> dict[str, Any]:
    """`{"data"?, "errors"?}`."""
    problems = _problems(document.node)
    if problems:
        return {"errors": [_formatted(error) for error in problems]}
    found = graphql.execute(
        schema(),
        document.node,
        context_value=asked,
        variable_values=dict(variables or {}),
        operation_name=operation or None,
    )
    result = await found if asyncio.iscoroutine(found) or hasattr(found, "__await__") else found
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [_formatted(error) for error in result.errors]
    return answer


def _problems(node: DocumentNode) -> list[GraphQLError]:
    """Why the document is not executed."""
    try:
        too_much = excess(node)
        if too_much is not None:
            return [GraphQLError(too_much, extensions={"code": "QUERY_TOO_LARGE"})]
        return graphql.validate(schema(), node, max_errors=20)
    except RecursionError:
        return [GraphQLError("The query is nested too deep.", extensions={"code": "QUERY_TOO_LARGE"})]


@cache
def schema() -> GraphQLSchema:
    made = graphql.build_schema(SDL)
    for name, fields in RESOLVERS.items():
        kind = made.type_map[name]
        assert isinstance(kind, GraphQLObjectType)
        for field, resolve in fields.items():
            kind.fields[field].resolve = resolve
    return made


def _formatted(error: GraphQLError) -> dict[str, Any]:
    """As GraphQL tells errors; of ours the code is in `extensions`, and of a fault nothing is told."""
    formatted: dict[str, Any] = dict(error.formatted)
    cause = error.original_error
    if isinstance(cause, FlashmeshError):
        words = next((words for kind, words in _FLASH_SAYS.items() if isinstance(cause, kind)), None)
        message = str(cause)
        formatted["message"] = f"{words}: {message[:1].lower()}{message[1:]}" if words else message
        formatted["extensions"] = {"code": cause.code}
    elif cause is not None and not isinstance(cause, GraphQLError):
        log.error("GraphQL: %s failed", ".".join(map(str, error.path or ())), exc_info=cause)
        formatted["message"] = _OUR_FAULT
        formatted["extensions"] = {"code": "INTERNAL"}
    return formatted


def _where(error: GraphQLError) -> str:
    return ", ".join(f"(line {place.line}, column {place.column})" for place in error.locations or ())
