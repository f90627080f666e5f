"""How deep and how large a GraphQL document may be. Pure.

Counted after its fragments are put where they are spread, without putting them there: a fragment is counted once, so
that a small document which means a huge one costs nothing to refuse.
"""

from typing import Any, Final

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

MAX_DEPTH: Final = 12
"""Fields inside fields. The deepest that Flash's clients ask for is 5."""
MAX_FIELDS: Final = 1000
MAX_TOKENS: Final = 50_000
"""Of a document's text: parsing stops there."""
MAX_DOCUMENT_BYTES: Final = 1024 * 1024
_INTROSPECTION_DEPTH: Final = 15
"""What tools that draw a schema ask for goes this deep. Its lists inside lists are bounded by graphql-core's rule."""


def excess(document: DocumentNode) -> str | None:
    """What of the document is too much, for people; None: nothing."""
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    measured: dict[str, tuple[int, int]] = {}
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode):
            for part in node.selection_set.selections:
                fields, depth = _measure_one(part, fragments, measured, ())
                limit = _INTROSPECTION_DEPTH if _is_introspection(part) else MAX_DEPTH
                if depth > limit:
                    return f"The query is nested {depth} fields deep; at most {limit} are answered."
            fields, _ = _measure(node.selection_set, fragments, measured, ())
            if fields > MAX_FIELDS:
                return f"The query asks for more than {MAX_FIELDS} fields. Ask for less at once."
    return None


def _is_introspection(node: Any) -> bool:
    return isinstance(node, FieldNode) and node.name.value in ("__schema", "__type")


def _measure(
    selections: SelectionSetNode | None,
    fragments: dict[str, FragmentDefinitionNode],
    measured: dict[str, tuple[int, int]],
    inside: tuple[str, ...],
) -> tuple[int, int]:
    """Fields and depth."""
    fields, depth = 0, 0
    for node in selections.selections if selections is not None else ():
        more, deeper = _measure_one(node, fragments, measured, inside)
        fields, depth = fields + more, max(depth, deeper)
    return fields, depth


def _measure_one(
    node: Any,
    fragments: dict[str, FragmentDefinitionNode],
    measured: dict[str, tuple[int, int]],
    inside: tuple[str, ...],
) -> tuple[int, int]:
    if isinstance(node, FieldNode):
        fields, depth = _measure(node.selection_set, fragments, measured, inside)
        return fields + 1, depth + 1
    if isinstance(node, InlineFragmentNode):
        return _measure(node.selection_set, fragments, measured, inside)
    assert isinstance(node, FragmentSpreadNode)
    name = node.name.value
    if name in inside or name not in fragments:
        return 0, 0  # the validation says what is wrong with it
    if name not in measured:
        measured[name] = _measure(fragments[name].selection_set, fragments, measured, (*inside, name))
    return measured[name]
