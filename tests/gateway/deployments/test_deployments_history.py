"""Which deployment a rollback goes back to."""

from typing import Any

import pytest

from flashmesh.gateway.deployments.history import NothingToRollBackTo, rollback_target
from flashmesh.gateway.state.records import Deployment, DeploymentId, EnvironmentId


def history(*words: str) -> list[Deployment]:
    """`deploy a`, `failed b`, `rollback a`, `undeploy`, as they came."""
    found = []
    for number, word in enumerate(words, 1):
        kind, _, build = word.partition(" ")
        status: Any = "failed" if kind == "failed" else "succeeded"
        kind_: Any = "deploy" if kind == "failed" else kind
        found.append(
            Deployment(
                id=DeploymentId(f"dep-{number}"),
                app="shop",
                environment="production",
                environment_id=EnvironmentId("env"),
                number=number,
                kind=kind_,
                build=build or None,
                status=status,
                error=None,
                source="",
                by="",
                started_at=float(number),
                finished_at=float(number),
            )
        )
    return found


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("deploy a", "deploy b"), 1),
        (("deploy a", "deploy b", "deploy c"), 2),
        (("deploy a", "failed b"), 1),  # what serves now is a mixture: back to what the last good one was
        (("deploy a", "deploy b", "failed c"), 2),
        (("deploy a", "deploy b", "deploy c", "rollback b"), 1),  # twice back is two back
        (("deploy a", "deploy b", "rollback a", "deploy c"), 1),
        (("deploy a", "undeploy"), 1),
        (("deploy a", "deploy a"), 1),  # the same build with other values
    ],
)
def test_a_rollback_goes_one_step_back_in_what_succeeded(words: tuple[str, ...], number: int) -> None:
    assert rollback_target(history(*words)).number == number


@pytest.mark.parametrize("words", [(), ("deploy a",), ("failed a",), ("deploy a", "deploy b", "rollback a")])
def test_where_nothing_came_before_that_is_said(words: tuple[str, ...]) -> None:
    with pytest.raises(NothingToRollBackTo, match="flash deploy"):
        rollback_target(history(*words))


def test_a_build_is_found_by_the_beginning_of_its_id() -> None:
    """The newest deployment that reached it; an unknown one is told with those that are known."""
    found = history("deploy abc123", "deploy def456", "failed abc999", "deploy abc123", "deploy eee")
    assert rollback_target(found, "abc").number == 4
    with pytest.raises(NothingToRollBackTo, match="eee, abc123, def456"):
        rollback_target(found, "zzz")
