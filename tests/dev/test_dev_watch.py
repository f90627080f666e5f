"""The watcher reports each relevant change once, whatever an editor or a shell did to make it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmesh.dev.session.watch import changes, relevant


def watch(root: Path, act: Callable[[], object], *, until: Callable[[set[str]], bool]) -> set[str]:
    """What is reported after `act`, until it satisfies `until`."""

    async def main() -> set[str]:
        seen: set[str] = set()
        async with asyncio.timeout(10):
            async for paths in changes(root, on_watching=act):
                seen |= paths
                if until(seen):
                    break
        return seen

    return asyncio.run(main())


def test_new_edited_renamed_and_deleted_files_are_reported(tmp_path: Path) -> None:
    for name in ("edited.py", "renamed.py", "deleted.py"):
        (tmp_path / name).write_text("x = 1")

    def act() -> None:
        (tmp_path / "new.py").write_text("x = 1")
        (tmp_path / "edited.py").write_text("x = 2")
        (tmp_path / "renamed.py").rename(tmp_path / "other.py")
        (tmp_path / "deleted.py").unlink()

    expected = {"new.py", "edited.py", "renamed.py", "other.py", "deleted.py"}
    assert watch(tmp_path, act, until=expected.issubset) == expected


def test_a_moved_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "gpu.py").write_text("x = 1")
    seen = watch(
        tmp_path,
        lambda: (tmp_path / "workers").rename(tmp_path / "jobs"),
        until=lambda seen: bool(seen & {"jobs", "jobs/gpu.py"}),
    )
    assert seen & {"workers", "workers/gpu.py"}


@pytest.mark.parametrize(
    ("path", "matters"),
    [
        ("a.py", True),
        ("sub/a.py", True),
        ("pyproject.toml", True),
        ("sub/pyproject.toml", False),
        ("requirements.txt", True),
        (".env", True),
        (".flash/server.py", False),
        (".venv/lib/a.py", False),
        ("node_modules/a.py", False),
        ("__pycache__/a.py", False),
        ("data.csv", False),
        ("sub", True),
        (".git", False),
    ],
)
def test_only_what_can_change_what_is_served_counts(tmp_path: Path, path: str, matters: bool) -> None:
    assert relevant(tmp_path, tmp_path / path) is matters
