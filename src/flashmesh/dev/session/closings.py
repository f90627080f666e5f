"""Closing lines behind the answers: what ended in one moment is printed together, once its answers are on their way."""

import asyncio
from collections.abc import Mapping
from typing import Any

from flashmesh.deploy.local.printer import LogPrinter


class Closings:
    """Collects the closing lines of one turn of the event loop."""

    def __init__(self, printer: LogPrinter) -> None:
        self._printer = printer
        self._ended: list[Mapping[str, Any]] = []

    def add(self, fields: Mapping[str, Any]) -> None:
        """An invocation has ended. `fields` are not changed any more."""
        if not self._ended:
            asyncio.get_running_loop().call_soon(self.flush)
        self._ended.append(fields)

    def flush(self) -> None:
        """Print what was collected; before anything else is printed, so that lines stay in their order."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._printer.closing(*ended)
