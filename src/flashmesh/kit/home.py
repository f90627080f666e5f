"""Where this user's flashmesh keeps things."""

import os
from collections.abc import Mapping
from pathlib import Path


def flash_home(env: Mapping[str, str] | None = None) -> Path:
    """`$FLASH_HOME`, default `~/.flashmesh`: caches, volumes, the state of this machine's server."""
    return Path((os.environ if env is None else env).get("FLASH_HOME") or Path.home() / ".flashmesh")
