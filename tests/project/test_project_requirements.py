"""What a project needs installed, and what it is called."""

from pathlib import Path

import pytest
from project_fixtures import write

from flashmesh.project.appname import app_name
from flashmesh.project.requirements import name_of, project_requirements, union


@pytest.fixture(autouse=True)
def no_app_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASH_APP", raising=False)


def test_requirements_come_from_pyproject_without_those_that_mean_us(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pyproject.toml": '[project]\nname="x"\ndependencies=["numpy>=1", "runpod-flash>=1", "tetra_rp[all]", '
            '"Flashmesh", " rich "]\n',
            "requirements.txt": "ignored\n",
        },
    )
    assert project_requirements(tmp_path) == ("numpy>=1", "rich")


def test_requirements_files_are_followed_through_includes(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pyproject.toml": "[tool.x]\n",
            "requirements.txt": "a==1  # why\n\n# note\n-r more/base.txt\n--index-url https://x\n-e .\nrunpod_flash\n"
            "b @ https://host/b.whl#egg=b\n",
            "more/base.txt": "c>=2 ; python_version > '3'\n-r ../requirements.txt\nd \\\n  >=3\n",
        },
    )
    assert project_requirements(tmp_path) == (
        "a==1",
        "c>=2 ; python_version > '3'",
        "d >=3",
        "b @ https://host/b.whl#egg=b",
    )


@pytest.mark.parametrize("content", ["[project", "[project]\ndependencies = 3\n", "project = 3\n", b"\xff\xfe"])
def test_unreadable_files_count_as_empty(tmp_path: Path, content: str | bytes) -> None:
    write(tmp_path, {"pyproject.toml": content})
    assert project_requirements(tmp_path) == ()
    assert app_name(tmp_path) == tmp_path.name


def test_each_requirement_is_listed_once_in_the_order_given() -> None:
    assert union(["b", "a"], ["a", "c", "runpod-flash", ""]) == ("b", "a", "c")


@pytest.mark.parametrize(
    ("line", "name"),
    [("Runpod_Flash[x]>=1", "runpod-flash"), ("a.b--c", "a-b-c"), ("./local", ""), ("git+https://x", "git")],
)
def test_names_are_compared_in_their_normal_form(line: str, name: str) -> None:
    assert name_of(line) == name


def test_a_project_is_called_as_flash_toml_says_then_pyproject_then_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app_name(tmp_path) == tmp_path.name
    write(tmp_path, {"pyproject.toml": '[project]\nname = "shop"\n'})
    assert app_name(tmp_path) == "shop"
    write(tmp_path, {"flash.toml": '[app]\nname = "store"\n'})
    assert app_name(tmp_path) == "store"
    write(tmp_path, {"flash.toml": 'app = "market"\n'})
    assert app_name(tmp_path) == "market"
    monkeypatch.setenv("FLASH_APP", "bazaar")
    assert app_name(tmp_path) == "bazaar"
