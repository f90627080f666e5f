"""One declared HTTP route as data."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpRoute:
    """One declared HTTP route (a load-balanced resource's): its body runs in the process that answers HTTP."""

    method: str
    path: str
    """As it is asked for: on the dev server behind its file's prefix, at an endpoint as it was declared."""
    function: str
    """`module.qualname`."""
    resource: str
    file: str
    line: int | None = None
    dependencies: tuple[str, ...] = ()
    doc: str | None = None
    parameters: tuple[Mapping[str, Any], ...] = ()


def path_pattern(path: str) -> re.Pattern[str]:
    """`/items/{id}` and `/files/{rest:path}` as a regular expression."""
    pieces = re.split(r"\{([^{}:]+)(?::([^{}]+))?\}", path)
    text = re.escape(pieces[0])
    for index in range(1, len(pieces), 3):
        text += (".*" if pieces[index + 1] == "path" else "[^/]+") + re.escape(pieces[index + 2])
    return re.compile(text)
