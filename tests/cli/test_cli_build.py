"""`flash build` at the terminal."""

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flashmesh.cli.build import Size, read_env_file, split_patterns
from flashmesh.cli.commands import flash

WORKER = """
from flashmesh import Endpoint, LiveServerless, remote
gpu = LiveServerless(name="gpu", workersMax=3)
@remote(gpu)
async def hello(name: str) -> str: ...
@remote(gpu)
class Model:
    def infer(self, x): ...
"""
API = """
from flashmesh import Endpoint
api = Endpoint(name="api", cpu="cpu3c-1-2")
@api.post("/x")
async def x(n: int): ...
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    (root / "gpu_worker.py").write_text(WORKER)
    (root / "api.py").write_text(API)
    return root


def run(*arguments: object) -> Result:
    return CliRunner().invoke(flash, ["build", *map(str, arguments)])


def test_it_shows_resources_functions_size_and_what_comes_next(shop: Path) -> None:
    (shop / "server.key").write_text("x")
    done = run(shop)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    build_id = lines[0].split()[1]
    assert lines[0] == f"Build {build_id} of shop"
    assert [line.split() for line in lines[2:6]] == [
        ["Resource", "Kind", "File", "Hardware", "Workers", "Functions"],
        ["api", "LB", "api.py", "cpu3c-1-2", "0-1", "POST", "/x", "→", "x"],
        ["gpu_worker", "QB", "gpu_worker.py", "any", "GPU", "0-3", "hello"],
        ["Model(infer)"],
    ]
    assert lines[-1].startswith("2 files, ")
    assert "archive.tar.gz" in lines[-1]
    assert "Left out (they look like secrets): server.key" in done.stderr
    assert done.stderr.splitlines()[-1] == f"Next: flash deploy {shop}"


def test_json_is_all_that_is_on_stdout(shop: Path) -> None:
    done = run(shop, "--json", "--app", "other")
    document = json.loads(done.stdout)
    assert (document["app"], sorted(document["resources"])) == ("other", ["api", "gpu_worker"])
    assert document["resources"]["gpu_worker"]["functions"] == ["gpu_worker.hello", "gpu_worker.Model"]
    assert len(document["build"]) == 12
    assert document["bytes"] == Path(document["archive"]).stat().st_size


def test_a_directory_without_functions_exits_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "flash init" in done.stderr


def test_errors_exit_with_1_and_are_listed(shop: Path) -> None:
    (shop / "broken.py").write_text("from flashmesh import remote\n@remote(\n")
    done = run(shop)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "broken.py:2" in done.stderr


def test_excluded_patterns_are_given_with_commas_or_many_times(shop: Path) -> None:
    (shop / "data.csv").write_text("x")
    (shop / "notes.md").write_text("x")
    document = json.loads(run(shop, "--exclude", "*.csv, api.py", "--exclude", "*.md", "--json").stdout)
    assert list(document["resources"]) == ["gpu_worker"]
    with tarfile.open(document["archive"]) as tar:
        assert not {"data.csv", "notes.md", "api.py"} & set(tar.getnames())
    assert split_patterns(["a,b", " c ,", ""]) == ("a", "b", "c")


def test_an_env_file_gives_names_to_every_resource_and_its_values_show_nowhere(shop: Path, tmp_path: Path) -> None:
    env = tmp_path / "prod.env"
    env.write_text("# comment\nexport TOKEN='hush hush'\nEMPTY=\nOTHER=\"hush\\nhush\"\n")
    done = run(shop, "--env-file", env, "--json")
    assert json.loads(done.stdout)["resources"]["api"]["env"] == ["EMPTY", "OTHER", "TOKEN"]
    assert "hush" not in done.output + (shop / ".flash/manifest.json").read_text()
    assert read_env_file(env) == {"TOKEN": "hush hush", "EMPTY": "", "OTHER": "hush\nhush"}


@pytest.mark.parametrize("text", ["TOKEN\n", "A=1\nTOKEN='hush\n"])
def test_a_line_of_an_env_file_that_is_no_assignment_is_a_usage_error_without_its_value(
    shop: Path, tmp_path: Path, text: str
) -> None:
    env = tmp_path / "x.env"
    env.write_text(text)
    done = run(shop, "--env-file", env)
    assert done.exit_code == 2
    assert f"x.env:{text.count(chr(10))}: write it as NAME=value" in done.stderr
    assert "hush" not in done.output


def test_a_limit_on_the_size_names_the_largest_files(shop: Path) -> None:
    (shop / "big.bin").write_bytes(b"x" * 5000)
    done = run(shop, "--max-size", "4kB")
    assert done.exit_code == 1
    assert "5.0 kB  big.bin" in done.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("2 GB", 2_000_000_000), ("1.5k", 1500), ("77", 77), ("1gb", 10**9)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "big", "-1MB", "0", "1PB"])
def test_what_is_no_size_is_a_usage_error(shop: Path, text: str) -> None:
    assert run(shop, "--max-size", text).exit_code == 2


def test_a_name_that_no_app_may_have_is_refused_with_one_that_could_be_used(shop: Path) -> None:
    done = run(shop, "--app", "my shop")
    assert done.exit_code == 1
    assert "--app my-shop" in done.stderr


def test_a_place_that_cannot_be_written_exits_with_1_and_names_it(shop: Path) -> None:
    (shop / "taken").write_text("a file")
    done = run(shop, "--output", shop / "taken" / "x.tar.gz")
    assert done.exit_code == 1
    assert "taken" in done.stderr
    assert "Nothing was built" in done.stderr


def test_the_help_ends_in_examples() -> None:
    assert "Examples:" in run("--help").output
