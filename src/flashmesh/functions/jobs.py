"""Job: a call that was accepted for later."""

from __future__ import annotations

from typing import Protocol

from flashmesh.functions.errors import FlashmeshError, WaitTimedOut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Any


class JobBackend(Protocol):
    """Where an accepted call is kept. Each method exists twice: for coroutines, and blocking for plain code.

    `status` gives the word of the execution's state: QUEUED, RUNNING, SUCCESS, ERROR, TIMEOUT or CANCELLED.
    `result` waits for the end and returns the value, or raises what the function raised, `Cancelled` or `TimedOut`;
    `timeout` (seconds, None = no limit) ends only the wait and raises WaitTimedOut. `cancel` returns when the
    execution is over or will be soon; it does nothing to one that is over. `stream` gives each item once, in order.
    All raise ExecutionNotFound for an id that is no longer known.
    """

    async def status(self, id: str) -> str: ...
    def status_blocking(self, id: str) -> str: ...
    async def result(self, id: str, timeout: float | None) -> Any: ...
    def result_blocking(self, id: str, timeout: float | None) -> Any: ...
    async def cancel(self, id: str) -> None: ...
    def cancel_blocking(self, id: str) -> None: ...
    def stream(self, id: str) -> AsyncIterator[Any]: ...
    def stream_blocking(self, id: str) -> Iterator[Any]: ...


WORDS = {
    "QUEUED": "IN_QUEUE",
    "RUNNING": "IN_PROGRESS",
    "SUCCESS": "COMPLETED",
    "ERROR": "FAILED",
    "TIMEOUT": "TIMED_OUT",
    "CANCELLED": "CANCELLED",
}
"""An execution's state to the word a job says, which is the queue API's and Flash's."""

FINAL = frozenset({"COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"})


class Job:
    """An accepted call: `f.spawn(x)` gives one.

    In coroutines: `await job.status()`, `await job.result(timeout=…)`, `await job.cancel()`, `await job.wait()`,
    `async for item in job.stream()`. In plain code the same under `.call`, as everywhere: `job.call.result()`,
    `for item in job.call.stream()`.

    `output`, `error` and `done` tell what the last answer said; they ask nobody.
    """

    __slots__ = ("_backend", "_failure", "_id", "_output", "_word", "call")

    def __init__(self, id: str, backend: JobBackend) -> None:
        self._id = id
        self._backend = backend
        self._word = "IN_QUEUE"
        self._output: Any = None
        self._failure: BaseException | None = None
        self.call = BlockingJob(self)

    @property
    def id(self) -> str:
        """The execution's id."""
        return self._id

    @property
    def done(self) -> bool:
        """Whether it was over when it was last asked."""
        return self._word in FINAL

    @property
    def output(self) -> Any:
        """The value, once `status`, `wait` or `result` has seen it COMPLETED; None before."""
        return self._output

    @property
    def error(self) -> str | None:
        """What went wrong, as text, once seen; None otherwise."""
        if self._failure is None:
            return None
        return str(self._failure) or type(self._failure).__name__

    async def status(self) -> str:
        """IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, TIMED_OUT or CANCELLED; a finished job brings its output along."""
        if not self.done:
            word = WORDS[await self._backend.status(self._id)]
            if word in FINAL:
                await self._settled(None)
            self._word = word
        return self._word

    async def result(self, timeout: float | None = None) -> Any:
        """The value. Raises what the function raised; WaitTimedOut after `timeout` seconds, while the job goes on."""
        await self._settled(timeout)
        return self._value()

    async def wait(self, timeout: float | None = None) -> Job:
        """Wait for the end, however it ends, and return the job. Raises WaitTimedOut (a TimeoutError)."""
        await self._settled(timeout)
        return self

    async def cancel(self) -> Job:
        """Stop it, queued or running. A job that is over stays as it is."""
        await self._backend.cancel(self._id)
        await self.status()
        return self

    async def stream(self) -> AsyncIterator[Any]:
        """The items of a generator function as they come."""
        async for item in self._backend.stream(self._id):
            yield item

    async def _settled(self, timeout: float | None) -> None:
        if self._is_settled():
            return
        try:
            self._succeed(await self._backend.result(self._id, timeout))
        except Exception as error:
            self._fail(error)

    def _is_settled(self) -> bool:
        return self._failure is not None or self.done

    def _succeed(self, value: Any) -> None:
        self._output = value
        self._word = "COMPLETED"

    def _fail(self, error: Exception) -> None:
        """Remember how it failed. What concerns only this question (a wait, a lost connection) is raised instead."""
        code = getattr(error, "code", None) if isinstance(error, FlashmeshError) else None
        if code in _ABOUT_THE_QUESTION:
            raise error
        self._failure = error
        self._word = {"TIMEOUT": "TIMED_OUT", "CANCELLED": "CANCELLED"}.get(code or "", "FAILED")

    def _value(self) -> Any:
        if self._failure is not None:
            raise self._failure
        return self._output

    def __repr__(self) -> str:
        return f"Job(id={self._id!r}, status={self._word!r})"


_ABOUT_THE_QUESTION = {WaitTimedOut.code, "LINK_LOST", "EXECUTION_NOT_FOUND", "ENDPOINT_UNREACHABLE"}


class BlockingJob:
    """A job's methods for plain code; each blocks and otherwise does what its namesake does."""

    __slots__ = ("_job",)

    def __init__(self, job: Job) -> None:
        self._job = job

    def status(self) -> str:
        job = self._job
        if not job.done:
            word = WORDS[job._backend.status_blocking(job._id)]
            if word in FINAL:
                self._settle(None)
            job._word = word
        return job._word

    def result(self, timeout: float | None = None) -> Any:
        self._settle(timeout)
        return self._job._value()

    def wait(self, timeout: float | None = None) -> Job:
        self._settle(timeout)
        return self._job

    def cancel(self) -> Job:
        self._job._backend.cancel_blocking(self._job._id)
        self.status()
        return self._job

    def stream(self) -> Iterator[Any]:
        return self._job._backend.stream_blocking(self._job._id)

    def _settle(self, timeout: float | None) -> None:
        job = self._job
        if job._is_settled():
            return
        try:
            job._succeed(job._backend.result_blocking(job._id, timeout))
        except Exception as error:
            job._fail(error)
