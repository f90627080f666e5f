"""What the functions API asks of whoever keeps functions that were POSTed, and of who takes their completions."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flashmesh.gateway.directory import ANYWHERE, Directory, Where
from flashmesh.gateway.functions.spec import FunctionSpec


class Registry(Directory, Protocol):
    """A directory that can be changed. Every method raises FunctionNotFound or AmbiguousFunction for unknown names."""

    async def create(self, spec: FunctionSpec | bytes) -> Mapping[str, Any]:
        """Serve it. FunctionResponse. Raises MalformedRequest, ValidationError naming the field; with status 409: it
        exists; with 403: commands are not allowed."""
        ...

    async def patch(self, name: str, body: bytes, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """Change what `body` names. FunctionResponse. Raises MalformedRequest, ValidationError."""
        ...

    async def delete(self, name: str) -> None:
        """Serve it no longer."""
        ...

    async def replicas(self, name: str, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """`{name, desiredReplicas, readyReplicas}`."""
        ...

    async def set_replicas(self, name: str, replicas: int, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """`{function, replicas}`."""
        ...


Complete = Callable[[str, int | None, bytes], None]
"""`(execution, attempt, body)`: an external execution has ended as `body` (InvocationResult) says. `attempt` is the
`X-Dispatch-Attempt`. Raises ExecutionNotFound, StaleAttempt, MalformedRequest, ValidationError."""
