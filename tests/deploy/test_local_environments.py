"""Environments for declared dependencies: what is missing, and how it is installed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wheels import install_by_hand, make_wheel

from flashmesh.deploy.local.environments import Environments
from flashmesh.deploy.local.installed import missing
from flashmesh.functions.errors import EnvironmentFailed


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all the installer can see."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    return folder


class Told:
    """Progress as it came."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, endpoint: str, line: str) -> None:
        self.lines.append((endpoint, line))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


def environments(home: Path, told: Told | None = None, **options: object) -> Environments:
    settings: dict[str, object] = {"on_progress": told or Told(), "allow_install": True, **options}
    return Environments(home, **settings)  # type: ignore[arg-type]


def prepare(
    home: Path, *requirements: str, project: tuple[str, ...] = (), told: Told | None = None, **options: object
) -> list[Path]:
    found = environments(home, told, **options)
    return asyncio.run(found.prepare(requirements, project, endpoint="gpu"))


def version_in(folder: Path, module: str) -> str:
    source = f"import sys; sys.path.insert(0, {str(folder)!r}); import {module}; print({module}.VERSION)"
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()


def test_packages_that_are_here_already_need_no_environment(tmp_path: Path) -> None:
    told = Told()
    assert prepare(tmp_path, "pytest>=1", "Hypothesis", "runpod-flash>=99", "tetra_rp", told=told) == []
    assert told.lines == []
    assert not (tmp_path / "environments").exists()


def test_a_missing_package_is_installed_with_what_it_needs_into_a_folder_of_its_own(
    tmp_path: Path, wheels: Path
) -> None:
    make_wheel(wheels, "tinyone", "1.0", requires=("tinytwo>=2",))
    make_wheel(wheels, "tinytwo", "2.5")
    told = Told()
    (folder,) = prepare(tmp_path, "tinyone", told=told)
    assert folder.parent == tmp_path / "environments"
    assert (version_in(folder, "tinyone"), version_in(folder, "tinytwo")) == ("1.0", "2.5")
    assert "tinyone" in told.text and {endpoint for endpoint, _ in told.lines} == {"gpu"}


def test_an_environment_is_built_once_and_found_by_its_content(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "tinyone", "1.0")
    make_wheel(wheels, "tinytwo", "2.5")
    first = prepare(tmp_path, "tinyone", "tinytwo")
    told = Told()
    assert prepare(tmp_path, "tinytwo", "tinyone", "tinyone", told=told) == first
    assert told.lines == []
    assert prepare(tmp_path, "tinyone") != first


def test_the_functions_own_requirement_wins_over_the_projects(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "tinyone", "1.0")
    make_wheel(wheels, "tinyone", "2.0")
    make_wheel(wheels, "tinytwo", "1.0")
    (folder,) = prepare(tmp_path, "tinyone<2", project=("TinyOne>=2", "tinytwo"))
    assert (version_in(folder, "tinyone"), version_in(folder, "tinytwo")) == ("1.0", "1.0")


def test_what_is_installed_stays_within_the_limits_of_what_is_here(tmp_path: Path, wheels: Path) -> None:
    """A dependency's dependency is not installed beyond the project's own version limit."""
    make_wheel(wheels, "tinyone", "1.0", requires=("pytest",))
    make_wheel(wheels, "pytest", "8.0")
    make_wheel(wheels, "pytest", "99.0")
    (folder,) = prepare(tmp_path, "tinyone", project=("pytest<99",))
    assert version_in(folder, "pytest") == "8.0"


def test_a_failed_install_carries_the_installers_own_message_and_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "tinyone", "1.0")
    told = Told()
    with pytest.raises(EnvironmentFailed) as failure:
        prepare(tmp_path, "tinyone>=7", told=told)
    assert "tinyone>=7" in str(failure.value)
    assert "No solution found" in str(failure.value) and "No solution found" in told.text
    assert str(failure.value).endswith("to run with what is there.")
    assert [path for path in (tmp_path / "environments").iterdir() if not path.name.endswith(".lock")] == []
    make_wheel(wheels, "tinyone", "8.0")
    assert version_in(prepare(tmp_path, "tinyone>=7")[0], "tinyone") == "8.0"


def test_a_requirement_that_is_none_fails_with_the_installers_message(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="not a requirement"):
        prepare(tmp_path, "not a requirement!!")


def test_nothing_is_installed_where_that_is_not_allowed(tmp_path: Path) -> None:
    assert prepare(tmp_path, "no-such-package-xyz", allow_install=False) == []
    assert environments(tmp_path, allow_install=False).missing(["no-such-package-xyz"]) == ["no-such-package-xyz"]


def test_two_that_need_the_same_environment_at_once_build_it_once(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "tinyone", "1.0")
    told = Told()

    async def both() -> list[list[Path]]:
        one, other = environments(tmp_path, told), environments(tmp_path, told)
        return await asyncio.gather(one.prepare(["tinyone"]), other.prepare(["tinyone"]))

    first, second = asyncio.run(both())
    assert first == second
    assert told.text.count("installing tinyone") == 1


INSTALLER = """
import os, sys, time, pathlib
target = pathlib.Path(sys.argv[sys.argv.index("--target") + 1])
target.mkdir(parents=True)
(target / "half.py").write_text("")
pathlib.Path(os.environ["PID_FILE"] + ".new").write_text(str(os.getpid()))
os.rename(os.environ["PID_FILE"] + ".new", os.environ["PID_FILE"])
time.sleep(600)
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """An installer that leaves half an environment and sleeps, and the file with its pid."""
    script, pid_file = tmp_path / "slow.py", tmp_path / "pid"
    script.write_text(INSTALLER)
    monkeypatch.setenv("PID_FILE", str(pid_file))
    return [sys.executable, str(script)], pid_file


def test_an_installer_killed_with_minus_9_leaves_nothing_half_done(
    tmp_path: Path, slow: tuple[list[str], Path]
) -> None:
    command, pid_file = slow

    async def killed() -> None:
        preparing = asyncio.ensure_future(
            environments(tmp_path / "home", installer=command).prepare(["no-such-package-xyz"])
        )
        await until(pid_file.exists)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        with pytest.raises(EnvironmentFailed, match="killed by signal 9"):
            await preparing

    asyncio.run(killed())
    assert [path.suffix for path in (tmp_path / "home" / "environments").iterdir()] == [".lock"]


def test_an_install_that_nobody_waits_for_any_more_is_ended(tmp_path: Path, slow: tuple[list[str], Path]) -> None:
    command, pid_file = slow

    async def cancelled() -> None:
        preparing = asyncio.ensure_future(
            environments(tmp_path / "home", installer=command).prepare(["no-such-package-xyz"])
        )
        await until(pid_file.exists)
        preparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await preparing

    asyncio.run(cancelled())
    assert not alive(int(pid_file.read_text()))
    assert [path.suffix for path in (tmp_path / "home" / "environments").iterdir()] == [".lock"]


def test_a_session_killed_with_minus_9_takes_its_installer_along_and_the_next_cleans_up(
    tmp_path: Path, slow: tuple[list[str], Path], wheels: Path
) -> None:
    command, pid_file = slow
    home = tmp_path / "home"
    source = (
        "import asyncio, pathlib, sys\nfrom flashmesh.deploy.local.environments import Environments\n"
        f"environments = Environments(pathlib.Path({str(home)!r}), on_progress=print, allow_install=True, "
        f"installer={command!r})\nasyncio.run(environments.prepare(['tinyone']))\n"
    )
    session = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.DEVNULL)
    try:
        asyncio.run(until(pid_file.exists))
    finally:
        session.kill()
        session.wait()
    asyncio.run(until(lambda: not alive(int(pid_file.read_text()))))
    assert any(".partial-" in path.name for path in (home / "environments").iterdir())
    make_wheel(wheels, "tinytwo", "1.0")
    prepare(home, "tinytwo")
    assert not any(".partial-" in path.name for path in (home / "environments").iterdir())


@pytest.mark.parametrize(
    ("requirement", "is_missing"),
    [
        ("handmade", False),
        ("Hand_Made>=1", True),
        ("handmade>=1.4,<2", False),
        ("handmade>1.5", True),
        ("handmade==1.5rc1", True),
        ("absent ; python_version < '3'", False),
        ("absent ; python_version > '3'", True),
        ("handmade[light]", False),
        ("handmade[heavy]", True),
        ("handmade[unknown]", False),
        ("absent @ https://host/absent.whl", True),
        ("handmade @ https://host/handmade.whl", False),
        ("./local/folder", True),
    ],
)
def test_requirements_are_met_by_version_extras_and_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirement: str, is_missing: bool
) -> None:
    metadata = "Requires-Dist: pytest ; extra == 'light'\nRequires-Dist: absent>=1 ; extra == 'heavy'\n"
    install_by_hand(tmp_path, "handmade", "1.5", metadata=metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing([requirement]) == ([requirement] if is_missing else [])


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):  # it may go while it is looked at
        return False
