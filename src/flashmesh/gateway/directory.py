"""What the control plane serves, by every name that callers may use."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from flashmesh.kit.ids import EndpointName, FunctionId


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Callee:
    """One callable function."""

    function: FunctionId
    endpoint: EndpointName
    external: bool = False
    """Made by POST: an HTTP address or a command, not Python of ours. Its body is the InvocationRequest."""
    wait_ms: int | None = None
    """How long `:invoke` waits without `X-Timeout-Ms`; None: the face's default (30 s)."""
    max_wait_ms: int = 300_000
    """The longest `X-Timeout-Ms`."""


class Directory(Protocol):
    """Names of endpoints and functions. `version` grows with every change: faces remember what they found."""

    version: int

    def function(self, name: str) -> Callee:
        """By id (`module.qualname`) or a unique bare name.

        Raises FunctionNotFound (naming the nearest), AmbiguousFunction.
        """
        ...

    def endpoint(self, name: str) -> tuple[Callee, ...]:
        """The callables of an endpoint: by endpoint id, resource name, declared name or function name, in that order.

        Sorted by id. Raises FunctionNotFound, AmbiguousFunction.
        """
        ...

    def describe(self, callee: Callee) -> Mapping[str, Any]:
        """FunctionResponse of the functions API: plain JSON values."""
        ...

    def functions(self) -> tuple[Callee, ...]:
        """All, sorted by id."""
        ...
