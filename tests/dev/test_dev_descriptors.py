"""The limit of open files: raised for a session, never lowered."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from flashmesh.kit.descriptors import raise_limit
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(raise_limit(2000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "afterwards"),
    [(256, 4096, 2000), (256, 1000, 1000), (3000, 4096, 3000)],
    ids=["as wanted", "as far as the system allows", "what was more stays"],
)
def test_a_session_may_open_many_files(soft: int, hard: int, afterwards: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(soft), str(hard)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(afterwards)] * 2
