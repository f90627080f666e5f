"""What importing the public names costs, seen by which modules it loads."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flashmesh

HEAVY = {
    "asyncio",
    "click",
    "cloudpickle",
    "dataclasses",
    "dotenv",
    "fastapi",
    "inspect",
    "json",
    "logging",
    "msgspec",
    "numpy",
    "pathlib",
    "pydantic",
    "re",
    "socket",
    "ssl",
    "threading",
    "typing",
    "urllib.request",
}


def loaded_by(code: str) -> set[str]:
    program = (
        f"import sys; before = set(sys.modules)\n{code}\n"
        "after = set(sys.modules) - before\nimport json; print(json.dumps(sorted(after)))"
    )
    answer = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(answer.stdout))


def test_importing_the_package_imports_nothing_else() -> None:
    assert loaded_by("import flashmesh") == {"flashmesh"}


@pytest.mark.parametrize(
    "code",
    [
        "from flashmesh import remote, LiveServerless, GpuGroup\n@remote(LiveServerless(name='x'))\ndef f(): ...",
        "from flashmesh import Endpoint\n@Endpoint(name='x', cpu='cpu3c-1-2')\nasync def f(): ...",
        "from flashmesh import Endpoint\napi = Endpoint(name='x')\n@api.get('/x')\ndef f(): ...",
        "from flashmesh import remote, NetworkVolume, CpuLiveServerless\n"
        "@remote(CpuLiveServerless(name='x', networkVolume=NetworkVolume(name='v')))\nclass C:\n    def m(self): ...",
    ],
)
def test_declaring_functions_loads_nothing_heavy(code: str) -> None:
    """Neither asyncio nor a data library: the first line of every user's file must cost little."""
    assert not loaded_by(code) & HEAVY


def test_the_drop_in_name_loads_no_more_than_it_must() -> None:
    assert not loaded_by("from runpod_flash import Endpoint") & HEAVY


def test_every_public_name_exists_and_nothing_else_does() -> None:
    for name in flashmesh.__all__:
        assert getattr(flashmesh, name) is not None
    assert set(flashmesh.__all__) <= set(dir(flashmesh))
    with pytest.raises(AttributeError):
        _ = flashmesh.nothing  # type: ignore[attr-defined]


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert flashmesh.__version__ == project["project"]["version"]
