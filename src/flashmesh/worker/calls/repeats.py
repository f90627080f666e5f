"""Whether a call that a worker made of a peer is made again, and when. Decisions only.

The same rules as for calls through a session: what certainly did not run, once, after a fresh look at the manifest;
what may have run only when the function declares `retries=`.
"""

from collections.abc import Callable
from typing import Final

from flashmesh.executions.backoff import backoff_s
from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import FlashmeshError, RemoteError, TimedOut, WorkerLost
from flashmesh.worker.calls.exchange import NotReached
from flashmesh.worker.calls.peer_call import Moved, NotRun
from flashmesh.worker.invocation import CURRENT

_NAMED_BY_RETRY_ON: Final = (RemoteError, TimedOut)
"""Errors of ours that stand for what the function did: its own exception, its own time limit."""


class Repeats:
    """What is left to try for one call.

    Args:
        config: of the function that is called.

    Attributes:
        looks: the manifest is to be looked at once more before the call is made again.
    """

    __slots__ = ("_attempt", "_config", "_looked", "looks")

    def __init__(self, config: Callable[[], ResourceConfig]) -> None:
        self._config = config
        self._looked = False
        self.looks = False
        self._attempt = 0

    def pause_s(self, error: Exception) -> float:
        """Seconds to wait before the call is made again. Raises `error` when it is final."""
        caller = CURRENT.get()
        if caller is not None and caller.doomed is not None:
            raise error  # the call that made this one must end
        if isinstance(error, NotReached | NotRun | Moved):
            if self._looked:
                raise error
            self._looked = self.looks = True
            return 0.0
        self.looks = False
        self._attempt += 1
        if not may_repeat(self._config(), error, attempt=self._attempt):
            raise error
        return backoff_s(self._attempt)


def may_repeat(config: ResourceConfig, error: Exception, *, attempt: int) -> bool:
    """Whether attempt number `attempt`, which ended in `error`, is followed by another one."""
    if attempt > config.retries:
        return False
    if isinstance(error, WorkerLost):
        return True
    if isinstance(error, FlashmeshError) and not isinstance(error, _NAMED_BY_RETRY_ON):
        return False
    return not config.retry_on or not _names(error).isdisjoint(config.retry_on)


def _names(error: Exception) -> set[str]:
    """What `retry_on` may call it: its class and that one's bases, or the name it had where its class is known."""
    if isinstance(error, RemoteError):
        return {error.type_name, f"builtins.{error.type_name}"}
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
