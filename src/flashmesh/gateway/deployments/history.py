"""Which earlier deployment a rollback goes back to. Pure."""

from collections.abc import Sequence

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.state.records import Deployment


class NothingToRollBackTo(FlashmeshError):
    """There is no earlier deployment of this environment that succeeded. `flash deploy` brings it to another build."""

    code = "NOTHING_TO_ROLL_BACK_TO"
    status = 409


def rollback_target(deployments: Sequence[Deployment], build: str | None = None) -> Deployment:
    """The deployment whose build, manifest and values shall serve again.

    Without `build`: the one before the last that succeeded; where the last did not, the last that did. A rollback goes
    back in this history and does not add to it, so rolling back twice goes back twice.

    Args:
        deployments: of one environment, in any order.
        build: an id, or its beginning.
    Raises:
        NothingToRollBackTo.
    """
    ordered = sorted((one for one in deployments if one.status != "running"), key=lambda one: one.number)
    if build is not None:
        found = [one for one in ordered if _reached(one) and str(one.build).startswith(build)]
        if not found:
            known = dict.fromkeys(str(one.build) for one in reversed(ordered) if _reached(one))
            listed = f" There were: {', '.join(known)}." if known else ""
            raise NothingToRollBackTo(f"No deployment of the build {build!r} is remembered here.{listed}")
        return found[-1]
    stack = _stack(ordered)
    last = ordered[-1] if ordered else None
    if last is not None and stack and not _reached(last) and last.kind != "undeploy":
        return stack[-1]
    if last is not None and last.kind == "undeploy" and stack:
        return stack[-1]
    if len(stack) < 2:
        raise NothingToRollBackTo(" ".join(str(NothingToRollBackTo.__doc__).split()))
    return stack[-2]


def _reached(one: Deployment) -> bool:
    return one.status == "succeeded" and one.build is not None


def _stack(ordered: Sequence[Deployment]) -> list[Deployment]:
    """What a series of deployments has come to: each adds one, a rollback takes away what it went back over."""
    stack: list[Deployment] = []
    for one in ordered:
        if not _reached(one):
            continue
        if one.kind == "rollback":
            earlier = next((place for place in range(len(stack) - 1, -1, -1) if stack[place].build == one.build), None)
            if earlier is not None:
                del stack[earlier + 1 :]
                continue
        stack.append(one)
    return stack
