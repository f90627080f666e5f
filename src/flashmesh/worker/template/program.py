"""What zygotes and workers run, as a port: the real one imports the user's modules, a test's need not."""

import sys
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

if TYPE_CHECKING:
    from flashmesh.worker.context import WorkerContext
    from flashmesh.worker.spec import WorkerSpec


class ImportTooLong(BaseException):
    """Raised in the zygote where the user's import is when its time is over; not an Exception, so that it gets out."""

    def __init__(self, limit_s: float) -> None:
        self.reason = f"import took longer than {limit_s:g} s"
        super().__init__(self.reason)


class Program(Protocol):
    """Called in the template (`preload`), in the zygote (`load`, `describe`) and in each worker (`run_worker`)."""

    spawn_command: ClassVar[list[str]]
    """argv that starts a zygote or worker in a fresh interpreter; its settings are appended as one JSON argument."""
    forks: ClassVar[bool]
    """Whether this system allows forks that do not exec."""

    def preload(self) -> None:
        """Import what every worker needs, before anything is forked."""
        ...

    def load(self, spec: "WorkerSpec") -> Any:
        """Import the user's modules, and make what is the same in every worker. Raises loader.ImportProblem,
        SettingsError or AddressRefused, or whatever the import raised.

        ImportTooLong may come out of any line of it.
        """
        ...

    def describe(self, loaded: Any) -> list[dict[str, Any]]:
        """The functions found, as READY tells them to the session."""
        ...

    def get_ready(self, spec: "WorkerSpec", loaded: Any) -> Any:
        """In a child forked ahead: whatever a worker needs that is not the user's. Given back as `context.ahead`."""
        ...

    def run_worker(self, spec: "WorkerSpec", context: "WorkerContext") -> NoReturn:
        """Be a worker until told to leave; leaves by SystemExit."""
        ...


class UserProgram:
    """The program of every real endpoint."""

    spawn_command: ClassVar[list[str]] = [sys.executable, "-P", "-u", "-m", "flashmesh.worker.template.spawned"]
    forks: ClassVar[bool] = sys.platform == "linux"

    def preload(self) -> None:
        import flashmesh.worker.assemble
        import flashmesh.worker.callables
        import flashmesh.worker.loader
        import flashmesh.worker.runtime  # noqa: F401 - asyncio, msgspec and the face: shared by all forks

    def load(self, spec: "WorkerSpec") -> Any:
        from flashmesh.worker import assemble

        return assemble.prepare(spec)

    def describe(self, loaded: Any) -> list[dict[str, Any]]:
        from flashmesh.worker import callables

        return callables.describe(loaded)

    def get_ready(self, spec: "WorkerSpec", loaded: Any) -> Any:
        from flashmesh.worker import runtime

        return runtime.get_ready(spec, loaded)

    def run_worker(self, spec: "WorkerSpec", context: "WorkerContext") -> NoReturn:
        from flashmesh.worker import runtime

        runtime.run_worker(spec, context)
