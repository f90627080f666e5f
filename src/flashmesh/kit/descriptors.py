"""How many files a session's processes may have open."""

import resource
from typing import Final

WANTED: Final = 65_536
"""Open files per process. Systems give 256 or 1024 by default: a server with more connections than that drops the next
ones unanswered, and a keeper needs two for each endpoint. Each is paid for only when it is used."""


def raise_limit(wanted: int = WANTED) -> int:
    """Allow this process, and those it starts from now on, `wanted` open files or as many as the system lets it.

    Returns the limit in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
        except (ValueError, OSError):  # macOS: the system's own maximum may be below the limit it reports
            return soft
    return soft
