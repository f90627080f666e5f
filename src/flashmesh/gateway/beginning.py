"""What a server does before it is even imported: take what it needs alone, and start its processes.

Their interpreters, and the first template's imports, take as long as the server's own; begun first, they take that time
beside it.
"""

import contextlib
from types import TracebackType

from flashmesh.deploy.local.place import SessionPlace
from flashmesh.gateway.data import DataDirectory, server_directory
from flashmesh.gateway.settings import ServerSettings
from flashmesh.kit.descriptors import raise_limit
from flashmesh.worker.keeper.child import KeeperChild


class Beginning:
    """A server's data directory, its place, and its keeper's process. As a context manager it closes them at the end.

    Raises, when made, what DataDirectory.take raises.

    Attributes:
        keep: endpoints serve on when the server stops, so their place stays for the next server.
        keeper: for whoever takes it first (`take_keeper`); None where it outlives its server, and where there is no
            project whose calls could need it.
    """

    def __init__(self, settings: ServerSettings) -> None:
        raise_limit()  # inherited by all
        self.keep = False
        with contextlib.ExitStack() as opened:
            self.data = DataDirectory.take(settings.data or server_directory(settings.home))
            opened.callback(self.data.close)
            self.place = SessionPlace.keep(self.data.place) if settings.keep_endpoints else SessionPlace.create()
            opened.callback(lambda: self.place.close(keep=self.keep))
            self.keeper: KeeperChild | None = None
            if settings.project is not None and not settings.keep_endpoints:
                self.keeper = KeeperChild(self.place.pipe_fd, self.place.directory, ahead=True)
            self._opened = opened.pop_all()

    def take_keeper(self) -> KeeperChild | None:
        """The keeper's process, once; from then on it is the taker's to end."""
        keeper, self.keeper = self.keeper, None
        return keeper

    def __enter__(self) -> "Beginning":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back; a keeper that nobody took ends with the place."""
        keeper = self.take_keeper()
        if keeper is not None:
            keeper.close()
        self._opened.close()
