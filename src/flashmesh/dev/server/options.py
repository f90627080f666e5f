"""What `flash run` was told, as the dev server's processes read it."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from flashmesh.functions.errors import SettingsError

VARIABLE = "FLASH_DEV_OPTIONS"
BODY_VARIABLE = "FLASH_MAX_BODY_BYTES"
DEFAULT_BODY_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DevOptions:
    """Settings of one dev server. `load` makes them from the environment."""

    inline: bool = False
    """Run the bodies of queue-based functions in the server's own process, for debuggers."""
    allow_origin: tuple[str, ...] = ()
    """Origins besides our own whose pages may call; `*` = any."""
    allow_host: tuple[str, ...] = ()
    """Host names besides those of the loopback that a request may be addressed to; `*` = any."""
    token: str | None = None
    """What every request must show when the server listens beyond the loopback; None = not needed."""
    host: str = "127.0.0.1"
    port: int = 8888
    short_wait_s: float = 1.0
    """How long `/run` waits for the function before it answers with an id."""
    max_body_bytes: int = DEFAULT_BODY_BYTES
    body_limit_s: float = 60.0
    """How long a request's body may take to arrive."""
    import_limit_s: float = 60.0
    """How long a file with HTTP routes may take to import."""
    drain_limit_s: float = 30.0
    """How long running requests may go on after the session has asked the server to end."""
    spawn: bool = sys.platform == "darwin"
    """Start server processes anew instead of forking them: macOS's libraries do not survive a fork."""
    verbose: bool = False


def load(environment: Mapping[str, str]) -> DevOptions:
    """Read FLASH_DEV_OPTIONS (JSON, keys as the fields above) and FLASH_MAX_BODY_BYTES.

    Raises:
        SettingsError: a value cannot be used; the message names the variable and the key.
    """
    given = _parse(environment.get(VARIABLE, ""))
    body_limit = environment.get(BODY_VARIABLE)
    if body_limit and "max_body_bytes" not in given:
        if not body_limit.isdecimal() or int(body_limit) == 0:
            raise SettingsError(f"{BODY_VARIABLE}={body_limit!r} is not a number of bytes. Use one such as 67108864.")
        given["max_body_bytes"] = int(body_limit)
    known = {field.name: field for field in dataclasses.fields(DevOptions)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known or (value is None and key != "token"):
            continue  # the session may be newer than this process's code
        values[key] = tuple(value) if key in ("allow_origin", "allow_host") else value
    return DevOptions(**values)


def _parse(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        given = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{VARIABLE} is not JSON: {error}. It is set by `flash run`; unset it.") from error
    if not isinstance(given, dict):
        raise SettingsError(f"{VARIABLE} is not a JSON object. It is set by `flash run`; unset it.")
    return given
