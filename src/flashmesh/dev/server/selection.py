"""Which of a file's callables a body means: a FunctionRequest's `function_name`, or Flash's `method` key."""

import dataclasses

from flashmesh.dev.server.route_book import ChoiceMatch, QueueRoute, select
from flashmesh.functions.errors import FunctionNotFound, MalformedRequest
from flashmesh.gateway.selection import body_without_name, given_input, name_in


@dataclasses.dataclass(frozen=True, slots=True)
class Selected:
    """A callable and the body it is to get, without what selected it."""

    route: QueueRoute
    body: bytes
    content_type: str


def choose(choice: ChoiceMatch, body: bytes, content_type: str) -> Selected:
    """The callable a body names.

    Raises:
        MalformedRequest: it names none, and the path names none either; lists the names.
        FunctionNotFound: the file has none of that name; lists the names.
    """
    if choice.wanted is not None:
        raise FunctionNotFound(f"{_file(choice)} has no function `{choice.wanted}`. It has: {_names(choice)}.")
    given = given_input(body, content_type)
    named = name_in(given)
    route = select(choice, named)
    if route is None:
        if named is not None:
            raise FunctionNotFound(f"{_file(choice)} has no function `{named}`. It has: {_names(choice)}.")
        first = choice.routes[0]
        raise MalformedRequest(
            f"{_file(choice)} has several functions: {_names(choice)}. "
            f"Send it to {first.prefix}/{choice.verb} or another of them."
        )
    assert given is not None
    return Selected(route, *body_without_name(given))


def _file(choice: ChoiceMatch) -> str:
    return choice.routes[0].file


def _names(choice: ChoiceMatch) -> str:
    return ", ".join(route.prefix.rpartition("/")[2] for route in choice.routes)
