"""Which files of a project are looked at."""

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from project_fixtures import write

from flashmesh.project.files import find_files, is_project_file, skips_file
from flashmesh.project.ignore import IgnoreRules


def paths(root: Path) -> list[str]:
    return [file.path for file in find_files(root)]


def test_python_files_in_any_folder_are_found_in_order(tmp_path: Path) -> None:
    write(tmp_path, {"b.py": "", "a/deep/er.py": "", "a.py": "", "notes.txt": "", "01_start/cpu-worker.py": ""})
    assert paths(tmp_path) == ["01_start/cpu-worker.py", "a.py", "a/deep/er.py", "b.py"]


def test_generated_hidden_installed_and_test_files_are_skipped(tmp_path: Path) -> None:
    skipped = [
        ".flash/server.py", "__pycache__/x.py", "pkg/__init__.py", ".hidden/x.py", ".hidden.py", "env/pyvenv.cfg",
        "env/lib/x.py", "conda/conda-meta", "conda/x.py", "node_modules/x.py", "site-packages/x.py", "test_a.py",
        "a_test.py", "conftest.py", "tests/helper.py", "pkg/tests/x.py",
    ]  # fmt: skip
    write(tmp_path, dict.fromkeys([*skipped, "pkg/kept.py", "testing.py", "contest.py"], ""))
    assert paths(tmp_path) == ["contest.py", "pkg/kept.py", "testing.py"]


def test_ignored_files_and_folders_are_skipped(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "build/\n*_old.py\n!keep_old.py\n/top.py\n",
            ".flashignore": "scratch\n",
            "build/x.py": "", "a_old.py": "", "keep_old.py": "", "top.py": "", "sub/top.py": "", "scratch/x.py": "",
        },
    )  # fmt: skip
    assert paths(tmp_path) == ["keep_old.py", "sub/top.py"]


def test_a_deeper_gitignore_wins_over_one_above_and_counts_only_below(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "gen_*.py\n",
            "a/.gitignore": "!gen_kept.py\nlocal.py\n",
            "a/gen_kept.py": "", "a/gen_x.py": "", "a/local.py": "", "local.py": "", "gen_kept.py": "",
        },
    )  # fmt: skip
    assert paths(tmp_path) == ["a/gen_kept.py", "local.py"]


def test_flashignore_may_take_back_what_gitignore_hides(tmp_path: Path) -> None:
    write(tmp_path, {".gitignore": "made.py\n", ".flashignore": "!made.py\n", "made.py": ""})
    assert paths(tmp_path) == ["made.py"]


def test_an_invalid_ignore_line_does_not_undo_the_others(tmp_path: Path) -> None:
    write(tmp_path, {".gitignore": "!\nhidden.py\n\xff[\n", "hidden.py": "", "shown.py": ""})
    assert paths(tmp_path) == ["shown.py"]


def test_a_link_inside_the_root_is_followed_under_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, {"releases/v1/work.py": "", "one.py": ""})
    (tmp_path / "current").symlink_to("releases/v1", target_is_directory=True)
    (tmp_path / "alias.py").symlink_to("one.py")
    assert paths(tmp_path) == ["alias.py", "current/work.py", "one.py", "releases/v1/work.py"]


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, {"outside/secret.py": "", "project/own.py": ""})
    (tmp_path / "project" / "out").symlink_to("../outside", target_is_directory=True)
    (tmp_path / "project" / "out.py").symlink_to("../outside/secret.py")
    (tmp_path / "project" / "dangling.py").symlink_to("nowhere.py")
    assert paths(tmp_path / "project") == ["own.py"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    write(tmp_path, {"a/x.py": "", "b/y.py": ""})
    (tmp_path / "a" / "to_b").symlink_to("../b", target_is_directory=True)
    (tmp_path / "b" / "to_a").symlink_to("../a", target_is_directory=True)
    (tmp_path / "self").symlink_to(".", target_is_directory=True)
    assert paths(tmp_path) == ["a/to_b/y.py", "a/x.py", "b/to_a/x.py", "b/y.py"]


def test_a_file_whose_name_is_not_text_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, {"fine.py": ""})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.py")).touch()
    assert paths(tmp_path) == ["fine.py"]


def test_a_folder_that_cannot_be_read_counts_as_empty(tmp_path: Path) -> None:
    assert paths(tmp_path / "absent") == []


def test_a_watcher_can_tell_cheaply_which_changes_matter(tmp_path: Path) -> None:
    assert is_project_file(tmp_path, tmp_path / "a" / "x.py")
    assert is_project_file(tmp_path, tmp_path / "pkg" / "__init__.py")
    assert is_project_file(tmp_path, tmp_path / ".gitignore")
    assert not is_project_file(tmp_path, tmp_path / ".flash" / "server.py")
    assert not is_project_file(tmp_path, tmp_path / "data.json")
    assert not is_project_file(tmp_path, tmp_path.parent / "x.py")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a.py", "*.py", "!a.py", "b/", "#x", "", "!*.py", "/a.py"]), max_size=6))
def test_the_last_line_that_speaks_of_a_file_decides(lines: list[str]) -> None:
    """As in git: later lines win, comments and blank lines say nothing."""
    verdict = False
    for line in lines:
        if line in ("a.py", "*.py", "/a.py"):
            verdict = True
        elif line in ("!a.py", "!*.py"):
            verdict = False
    assert IgnoreRules().enter("", lines).ignores("a.py", is_folder=False) is verdict


@settings(deadline=None)
@given(st.text(st.characters(categories=("L", "N"), include_characters="_-"), min_size=1))
def test_names_are_skipped_by_what_tests_are_called_only(stem: str) -> None:
    is_test = stem.startswith("test_") or stem.endswith("_test") or stem in ("conftest", "__init__")
    assert skips_file(f"{stem}.py") is is_test
    assert skips_file(f"{stem}.pyc")
