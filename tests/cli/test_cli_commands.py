"""The command line: exit codes, help, and messages that end in the next step."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from flashmesh.cli.commands import flash
from flashmesh.cli.init import project_name, write_project


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flashmesh.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_version_names_the_product() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("flash 0.")


def test_version_imports_nothing_heavy() -> None:
    heavy = {"asyncio", "fastapi", "uvicorn", "rich", "msgspec", "watchfiles", "pydantic"}
    program = (
        "import sys; sys.argv = ['flash', '--version']\n"
        "try:\n from flashmesh.cli import main; main()\n"
        f"except SystemExit: print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["init", "run", "dev", "build", "call", "logs", "status", "ls"])
def test_every_commands_help_ends_in_examples(command: str) -> None:
    shown = CliRunner().invoke(flash, [command, "--help"]).output
    assert "Examples:" in shown
    assert shown.rstrip().splitlines()[-1].strip().startswith(("flash ", "echo "))


@pytest.mark.parametrize("group", ["", "server", "executions", "app", "env", "token"])
def test_a_group_says_of_each_command_what_it_does_in_a_whole_sentence(group: str) -> None:
    shown = CliRunner().invoke(flash, [*filter(None, [group]), "--help"]).output
    listed = shown.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert listed
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


def test_flash_s_name_for_preparing_at_start_is_taken_too() -> None:
    shown = CliRunner().invoke(flash, ["run", "--auto-provision", "--no-install"])
    assert (shown.exit_code, "--prepare and --no-install exclude each other" in shown.output) == (2, True)


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("rnu")
    assert done.returncode == 2
    assert "There is no command 'rnu'. Did you mean `flash run`?" in done.stderr


def test_a_directory_that_is_missing_is_a_usage_error(tmp_path: Path) -> None:
    done = run("run", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "does not exist" in done.stderr


@pytest.mark.parametrize("command", [["call", "hello"], ["logs"], ["status"], ["ls", "--json"]])
def test_without_a_running_session_commands_say_how_to_start_one(command: list[str], tmp_path: Path) -> None:
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "No `flash run` serves this directory" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "command", [["undeploy", "--all", "-y"], ["rollback"], ["app", "list"], ["env", "get", "staging"]]
)
def test_without_a_server_commands_about_deployments_say_that_nothing_is_deployed(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASH_HOME", str(tmp_path / "home"))
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "there is nothing deployed" in done.stderr
    assert "`flash deploy` starts one" in done.stderr


@pytest.mark.parametrize(("arguments", "env"), [(["--target", "kubernetes"], {}), ([], {"FLASH_TARGET": "kubernetes"})])
def test_a_target_that_is_not_there_is_said_before_anything_is_built_or_started(
    arguments: list[str], env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASH_HOME", str(tmp_path / "home"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = run("deploy", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no target 'kubernetes'. There is `local`" in done.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("command", [["token", "create", "x"], ["deploy"]])
def test_a_home_that_cannot_be_written_is_said_with_the_variable_that_names_another(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hello.py").write_text(
        "from flashmesh import CpuLiveServerless, remote\n\n\n"
        "@remote(CpuLiveServerless(name='h'))\ndef h() -> int:\n    return 1\n"
    )
    monkeypatch.setenv("FLASH_HOME", "/proc/nowhere" if sys.platform == "linux" else "/dev/nowhere")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "name a folder that you may write to with FLASH_HOME" in done.stderr


def test_a_project_is_not_written_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("init", str(tmp_path / "file" / "app"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"{tmp_path}/file/app: Not a directory" in done.stderr


def test_input_that_is_not_json_is_a_usage_error(tmp_path: Path) -> None:
    done = run("call", "hello", "{name: 1}", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not JSON" in done.stderr


def test_windows_is_told_to_use_wsl2_before_anything_is_imported() -> None:
    program = (
        "import sys; sys.platform = 'win32'; before = set(sys.modules)\n"
        "import flashmesh.cli\n"
        "try: flashmesh.cli.main()\n"
        "except SystemExit as end: print(end.code, 'click' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["2", "False"]
    assert "WSL2" in done.stderr


def test_init_writes_a_whole_project(tmp_path: Path) -> None:
    target = tmp_path / "My App"
    done = run("init", str(target))
    assert done.returncode == 0
    assert "flash run" in done.stderr
    names = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert names == {
        ".gitignore",
        "README.md",
        "api.py",
        "pyproject.toml",
        "tests/test_workers.py",
        "workers/cpu.py",
        "workers/gpu.py",
    }
    assert tomllib.loads((target / "pyproject.toml").read_text())["project"]["name"] == "my-app"
    for path in target.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


def test_init_refuses_to_overwrite_and_then_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text("mine")
    done = run("init", str(tmp_path))
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["api.py"]
    assert run("init", str(tmp_path), "--force").returncode == 0
    assert (tmp_path / "api.py").read_text() != "mine"


def test_the_written_projects_own_tests_pass(tmp_path: Path) -> None:
    write_project(tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("folder", "name"), [("My App", "my-app"), ("a__b", "a-b"), ("日本", "app"), ("x", "x")])
def test_a_folders_name_becomes_a_project_name(folder: str, name: str) -> None:
    assert project_name(folder) == name
