"""One build's way to being served: offered to a template, and followed until it serves or is found not to work."""

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from flashmesh.deploy.target import DeployFailed
from flashmesh.worker.keeper.client import TemplateExited
from flashmesh.worker.spec import WorkerSpec

GRACE_S: Final = 0.5
"""How much later than the end of a template its last words may be heard: they come by another connection."""


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """Its workers take the endpoint's calls."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """It does not work; `reason` says where and why, `traceback` may be empty."""

    reason: str
    traceback: str


@dataclasses.dataclass(frozen=True, slots=True)
class TemplateGone:
    """The template it was offered to has ended. `reason` is empty where that was nobody's fault: offer it again."""

    reason: str


News = Served | Failed | TemplateGone


class Rollout:
    """`spec` is what was offered. Lives on the target's event loop."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._news: asyncio.Future[News] = asyncio.get_running_loop().create_future()

    async def news(self) -> News:
        """What became of it. May be asked again after TemplateGone."""
        found = await self._news
        if isinstance(found, TemplateGone):
            self._news = asyncio.get_running_loop().create_future()
        return found

    def hear(self, info: Mapping[str, Any]) -> None:
        """A template said READY about some build."""
        if (info.get("build"), info.get("generation")) != (self.spec.build, self.spec.generation):
            return
        if info.get("state") == "import_failed":
            error = info.get("error") or {}
            self._tell(Failed(_reason(error), str(error.get("traceback") or "")))
        elif info.get("serving"):
            self._tell(Served())

    def template_exited(self, event: TemplateExited) -> None:
        reason = event.reason if event.status else ""
        asyncio.get_running_loop().call_later(GRACE_S, self._tell, TemplateGone(reason))

    def _tell(self, news: News) -> None:
        if not self._news.done():
            self._news.set_result(news)


def failure(failed: Failed) -> DeployFailed:
    """What whoever deploys is told."""
    error = DeployFailed(f"{failed.reason}. Correct it and run `flash deploy` again")
    if failed.traceback:
        error.add_note(failed.traceback)
    return error


def _reason(error: Mapping[str, Any]) -> str:
    where = str(error.get("file") or "")
    if where and error.get("line"):
        where = f"{where}:{error['line']}"
    reason = str(error.get("reason") or "the import failed")
    return f"{where}: {reason}" if where else reason
