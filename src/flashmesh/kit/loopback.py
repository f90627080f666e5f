"""Names and addresses of this machine's loopback, as Host headers and sockets say them."""

import re
from typing import Final

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.%]*)\]|([^:\[\]]*))(?::[0-9]*)?")


def is_loopback(host: str) -> bool:
    """Whether `host` (no port) is a name or address of this machine's loopback; `*.localhost` counts."""
    name = host.lower().strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name == "::1":
        return True
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part.isascii() and part.isdigit() for part in parts)


def without_port(host: str) -> str:
    """The name in a Host header. One that has anything but a port behind it stays whole, so that no name is like it."""
    found = _HOST.fullmatch(host)
    return host if found is None else found[1] or found[2]
