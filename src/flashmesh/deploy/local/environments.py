"""Environments for `dependencies=[…]`: what this interpreter lacks, installed once into a folder of its own.

An environment is a folder `$FLASH_HOME/environments/<hash>` that stands before site-packages in a worker's import path,
so what the interpreter has already is not installed again. It is named by its content's recipe (requirements, limits,
interpreter, platform), built beside its place and renamed into it: a folder that has its name is complete.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

from flashmesh.functions.errors import EnvironmentFailed
from flashmesh.project.requirements import name_of, union

_INSTALLER = Path(__file__).with_name("installer.py")
_PARTIAL = ".partial-"
_LOCK_RETRY_S = 0.05
"""How often a lock that another process holds is tried again. Higher: the second of two waits longer than it must."""
_TAIL_LINES = 40
"""Most lines of the installer's output that a failure repeats."""


class Environments:
    """Finds out what is missing and installs it.

    Args:
        home: `$FLASH_HOME`.
        on_progress: called with the endpoint's name and a line for people to read.
        allow_install: False = run with what is there (`--no-install`).
        project_root: where relative paths in requirements start, and where uv looks for its own settings.
        installer: the command in front of `pip install`; default: the `uv` package's own program.
    """

    def __init__(
        self,
        home: Path,
        *,
        on_progress: Callable[[str, str], None],
        allow_install: bool,
        project_root: Path | None = None,
        installer: Sequence[str] | None = None,
    ) -> None:
        self._folder = home / "environments"
        self._on_progress = on_progress
        self._allow_install = allow_install
        self._root = project_root
        self._installer = installer

    def missing(self, requirements: Iterable[str]) -> list[str]:
        """Those requirements that the running interpreter does not meet, as written. Ours never count."""
        wanted = union(requirements)
        if not wanted:
            return []
        from flashmesh.deploy.local import installed  # `packaging`: 50 ms that no start-up need wait for

        return installed.missing(wanted)

    async def prepare(
        self, requirements: Iterable[str], project_requirements: Iterable[str] = (), *, endpoint: str = ""
    ) -> list[Path]:
        """The folders to put before site-packages; empty when everything is here already or nothing may be installed.

        Args:
            requirements: of the resource and its functions; where both name a package, they win over the project's.
            project_requirements: of the project.
            endpoint: whose environment it is, for progress.
        Raises:
            EnvironmentFailed: with the installer's own message. Nothing is left behind; the next call tries again.
        """
        wanted = _combined(union(requirements), union(project_requirements))
        lacking = self.missing(wanted)
        if not lacking or not self._allow_install:
            return []
        limits = _limits(line for line in wanted if line not in lacking)
        place = self._folder / _recipe(lacking, limits)
        if not place.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            async with _locked(self._folder / f"{place.name}.lock"):
                if not place.is_dir():
                    await self._build(place, lacking, limits, endpoint)
        return [place]

    async def _build(self, place: Path, lacking: list[str], limits: list[str], endpoint: str) -> None:
        """Install into a folder beside `place` and rename it. Called under the lock of `place`."""
        await asyncio.to_thread(_sweep, self._folder, place.name)
        self._on_progress(endpoint, f"installing {', '.join(lacking)}")
        partial = Path(tempfile.mkdtemp(prefix=f"{place.name}{_PARTIAL}", dir=self._folder))
        try:
            target = partial / "packages"
            constraints = ["--constraint", str(_write_limits(partial, limits))] if limits else []
            await self._install(target, constraints, lacking, endpoint)
            target.mkdir(exist_ok=True)
            target.rename(place)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True))
        self._on_progress(endpoint, f"installed {', '.join(lacking)}")

    async def _install(self, target: Path, constraints: list[str], lacking: list[str], endpoint: str) -> None:
        command = [sys.executable, "-I", "-S", str(_INSTALLER), *self._command(), "pip", "install"]
        command += ["--target", str(target), "--python", sys.executable, "--color", "never"]
        command += [*constraints, "--", *lacking]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._root,
            limit=1 << 20,
        )
        try:
            output = await self._follow(process, endpoint)
            status = await process.wait()
        finally:
            await _end(process)
        if status != 0:
            raise EnvironmentFailed(_failure(lacking, status, output, endpoint))

    async def _follow(self, process: asyncio.subprocess.Process, endpoint: str) -> list[str]:
        """Hand every line on; returns the last of them."""
        assert process.stdout is not None
        output: list[str] = []
        while raw := await process.stdout.readline():
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                output = [*output[1 - _TAIL_LINES :], line]
                self._on_progress(endpoint, line)
        return output

    def _command(self) -> Sequence[str]:
        if self._installer is not None:
            return self._installer
        from uv import find_uv_bin  # looks at several places on disk; only an install needs it

        try:
            return [find_uv_bin()]
        except FileNotFoundError as error:
            raise EnvironmentFailed(
                "Packages are missing and uv, which installs them, is not there. Install it with `pip install uv`."
            ) from error


def _combined(own: Iterable[str], project: Iterable[str]) -> tuple[str, ...]:
    """All of `own`, and those of the project's whose package `own` does not name."""
    own = tuple(own)
    names = {name_of(line) for line in own}
    return (*own, *(line for line in project if not name_of(line) or name_of(line) not in names))


def _limits(met: Iterable[str]) -> list[str]:
    """Version limits of requirements that are met, so that what is installed does not go beyond them."""
    from flashmesh.deploy.local.installed import parsed  # as above

    limits: list[str] = []
    for line in met:
        requirement = parsed(line)
        if requirement is not None and requirement.specifier and requirement.url is None:
            marker = f" ; {requirement.marker}" if requirement.marker else ""
            limits.append(f"{requirement.name}{requirement.specifier}{marker}")
    return sorted(limits)


def _write_limits(folder: Path, limits: list[str]) -> Path:
    path = folder / "limits.txt"
    path.write_text("".join(f"{line}\n" for line in limits))
    return path


def _sweep(folder: Path, held: str) -> None:
    """Remove what killed sessions left half done: of the environment whose lock we hold, and of those nobody builds."""
    for left in folder.glob(f"*{_PARTIAL}*"):
        name = left.name.partition(_PARTIAL)[0]
        if name == held:
            shutil.rmtree(left, ignore_errors=True)
            continue
        descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _recipe(lacking: list[str], limits: list[str]) -> str:
    """16 hex that are the same wherever the same install would give the same folder."""
    python = (sys.implementation.cache_tag, sysconfig.get_platform())
    return hashlib.sha256(json.dumps([sorted(lacking), limits, python]).encode()).hexdigest()[:16]


def _failure(lacking: list[str], status: int, output: list[str], endpoint: str) -> str:
    whom = f" for {endpoint}" if endpoint else ""
    ended = f"was killed by signal {status - 128}" if status > 128 else f"exited with {status}"
    said = "\n".join(output) or f"(the installer {ended} and said nothing)"
    return (
        f"Installing {', '.join(lacking)}{whom} failed:\n{said}\n"
        "Correct the dependencies and save, or use --no-install to run with what is there."
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close its standard input, which ends the installer's whole group, and wait for it."""
    assert process.stdin is not None
    process.stdin.close()
    await asyncio.shield(process.wait())


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold an exclusive lock on `path`; also against other tasks of this process. The kernel frees it if we die."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)
