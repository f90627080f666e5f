"""Which key is shown to whom. A key goes where it belongs and nowhere else, and is neither logged nor part of an error.

RUNPOD_API_KEY belongs to RunPod: runpod.ai, runpod.io, and the hosts that RUNPOD_*_URL names. FLASH_TOKEN belongs to
FLASH_SERVER and to the endpoints of its manifest: one that another State Manager wrote gets none, whatever addresses it
names. Sockets of this machine need no key: their folder is this user's alone.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from flashmesh.routing.addresses import PLAIN_NETWORKS, Address, AddressRefused, read_address, rules_of
from flashmesh.routing.route import is_runpod

SERVER: Final = "FLASH_SERVER"
TOKEN: Final = "FLASH_TOKEN"
TOKEN_FILE: Final = "FLASH_TOKEN_FILE"
"""A file that holds the token, read whenever it is needed, so that it can be renewed."""
STATE_MANAGER: Final = "FLASH_STATE_MANAGER_URL"


class Keys:
    """The keys of one process's environment. Making it raises SettingsError for FLASH_PLAIN_NETWORKS.

    Args:
        token_file: holds the token that this process was given for its calls; it wins over the environment's, which may
            be the user's own for something else. Empty: there is none.
    """

    def __init__(self, environ: Mapping[str, str], *, token_file: str = "") -> None:
        self._environ = environ
        self._file = token_file
        self._rules = rules_of(environ.get(PLAIN_NETWORKS, ""))

    def for_endpoint(self, address: Address, *, source: str) -> str:
        """What an endpoint of a manifest is shown; empty: nothing.

        Args:
            source: the origin of the State Manager that the manifest came from; empty: a file that this machine's own
                server or session wrote.
        """
        if self.is_runpods(address):
            return self._environ.get("RUNPOD_API_KEY", "").strip()
        return self._token() if not source or source in self._servers() else ""

    def for_configured(self, address: Address) -> str:
        """What a server is shown that local configuration names, and no manifest; empty: nothing."""
        if self.is_runpods(address):
            return self._environ.get("RUNPOD_API_KEY", "").strip()
        return self._token() if address.origin in self._servers() else ""

    def _token(self) -> str:
        given = "" if self._file else self._environ.get(TOKEN, "").strip()
        file = self._file or self._environ.get(TOKEN_FILE, "").strip()
        if not given and file:
            with suppress(OSError, UnicodeDecodeError):
                given = Path(file).read_text("ascii").strip()
        return given if given.isprintable() else ""  # a line's end in it would begin another header

    def _servers(self) -> set[str]:
        """FLASH_SERVER; a State Manager stands for it where only that is named."""
        named = self._environ.get(SERVER, "").strip() or self._environ.get(STATE_MANAGER, "").strip()
        return {self._origin(named)} - {""}

    def is_runpods(self, address: Address) -> bool:
        """Whether it is RunPod's, or stands for RunPod's by local configuration."""
        if is_runpod(address.host):
            return True
        named = (
            self._origin(value)
            for name, value in self._environ.items()
            if name.startswith("RUNPOD_") and name.endswith("_URL")
        )
        return address.origin in named

    def _origin(self, url: str) -> str:
        """The origin of an address that local configuration names; empty for none."""
        try:
            return read_address(url.strip().partition("?")[0], self._rules).origin if url.strip() else ""
        except AddressRefused:
            return ""
