"""What a server starts before it is loaded."""

from pathlib import Path

import pytest

from flashmesh.gateway.beginning import Beginning
from flashmesh.gateway.settings import load


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, False), ({"project": "."}, True), ({"project": ".", "keep_endpoints": True}, False)],
)
def test_a_keeper_is_started_ahead_for_a_projects_calls_only(
    tmp_path: Path, options: dict[str, object], expected: bool
) -> None:
    """A server that serves nothing yet has no process but its own; one that outlives its server is found later."""
    settings = load({"FLASH_HOME": str(tmp_path)}, None, options)
    with Beginning(settings) as beginning:
        keeper = beginning.take_keeper()
        assert (keeper is not None) is expected
        if keeper is not None:
            keeper.close()
