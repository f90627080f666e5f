"""The `env` of HTTP resources. Their bodies run in one process, the dev server's, so they share its variables."""

import logging
import os
from collections.abc import Mapping
from types import ModuleType

from flashmesh.functions.declarations import declarations_in

log = logging.getLogger("flashmesh")


class SharedEnvironment:
    """What the HTTP resources of a project declare, set for the whole process. The first to declare a name has it."""

    def __init__(self) -> None:
        self._declared: dict[str, str] = {}

    def take(self, module: ModuleType) -> None:
        """Set the variables of every resource whose routes `module` declares, over those the server started with."""
        for declaration in declarations_in(vars(module)):
            if declaration.path is not None:
                self._set(str(declaration.resource.name), declaration.resource.to_config().worker_env)

    def _set(self, resource: str, env: Mapping[str, str]) -> None:
        for name, value in env.items():
            if self._declared.setdefault(name, value) == value:
                os.environ[name] = value
            else:
                log.warning(
                    "HTTP routes share one process here: %s of %s is not set, another file has set it differently. "
                    "Give it another name, or serve the two files by two `flash run`s.",
                    name,
                    resource,
                )
