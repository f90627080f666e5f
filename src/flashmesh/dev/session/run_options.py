"""What `flash run` was asked for on its command line."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One field per option; defaults as documented by `flash run --help`."""

    root: Path
    host: str = "127.0.0.1"
    port: int | None = None
    """None = 8888 or the next free one."""
    reload: bool = True
    inline: bool = False
    allow_origin: tuple[str, ...] = ()
    allow_host: tuple[str, ...] = ()
    prepare: bool = False
    install: bool = True
    fork: bool = True
    verbose: bool = False
