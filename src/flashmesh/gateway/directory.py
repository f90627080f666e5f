"""What the control plane serves, by every name that callers may use."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from flashmesh.gateway.http import Request
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
    named: bool = False
    """Calls name their endpoint, because another one may serve a function of the same id."""


class Where(NamedTuple):
    """The app and the environment in which a request's names are looked up; empty: any."""

    app: str = ""
    environment: str = ""
    only_app: str = ""
    """What its token counts for; empty: any."""
    only_environment: str = ""


ANYWHERE: Final = Where()


class Directory(Protocol):
    """Names of endpoints and functions. `version` grows with every change: faces remember what they found."""

    version: int

    scoped: bool
    """Whether a name may mean different functions to different callers, or nothing to some. Changes with `version`."""

    def where(self, request: Request) -> Where:
        """The app and environment that a request says, or its token."""
        ...

    def visible(self, endpoint: EndpointName, where: Where) -> bool:
        """Whether what belongs to an endpoint (its executions, its log) may be seen with such a token."""
        ...

    def within(self, endpoint: EndpointName, where: Where) -> bool:
        """Whether an endpoint is in that app and environment, and may be seen."""
        ...

    def function(self, name: str, where: Where = ANYWHERE) -> Callee:
        """By id (`module.qualname`) or a bare name: the only one, in `production` before others.

        Raises FunctionNotFound (naming the nearest), AmbiguousFunction.
        """
        ...

    def endpoint(self, name: str, where: Where = ANYWHERE) -> tuple[Callee, ...]:
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
