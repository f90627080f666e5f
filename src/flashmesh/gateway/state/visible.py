"""What of the state a request may see: all of it, or what its token counts for."""

import dataclasses

from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import (
    App,
    AppNotFound,
    Build,
    BuildNotFound,
    Environment,
    EnvironmentNotFound,
)
from flashmesh.gateway.state.scope import OutOfScope


@dataclasses.dataclass(frozen=True, slots=True)
class Visible:
    """Reads on behalf of one request. What it may not see does not exist for it.

    Args:
        holder: what its token allows; None: the loopback without one, which may read.
    """

    manager: StateManager
    holder: Grant | None

    @property
    def is_admin(self) -> bool:
        return self.holder is not None and self.holder.scope == "admin"

    def shows_app(self, name: str) -> bool:
        return self.holder is None or self.holder.app in ("", name)

    def shows(self, environment: Environment) -> bool:
        return self.shows_app(environment.app) and (
            self.holder is None or self.holder.environment in ("", environment.name)
        )

    def apps(self) -> list[App]:
        return [app for app in self.manager.apps() if self.shows_app(app.name)]

    def may_touch(self, app: str, environment: str = "") -> None:
        """Raises OutOfScope when the token counts for another app or environment."""
        holder = self.holder
        if holder is None:
            return
        for noun, only, meant in (("app", holder.app, app), ("environment", holder.environment, environment)):
            if only and meant and only != meant:
                raise OutOfScope(f"The token {holder.name!r} counts for the {noun} {only!r} and not for {meant!r}.")

    def app(self, name: str) -> App:
        """Raises AppNotFound."""
        if not self.shows_app(name):
            raise AppNotFound(f"There is no app {name!r} that this token counts for.")
        return self.manager.app(name)

    def app_of_id(self, id: str) -> App:
        """Raises AppNotFound."""
        app = self.manager.app_of_id(id)
        if not self.shows_app(app.name):
            raise AppNotFound(f"There is no app with the id {id!r} that this token counts for.")
        return app

    def environments(self, app: str) -> list[Environment]:
        return [one for one in self.manager.environments(app) if self.shows(one)]

    def environment(self, app: str, name: str) -> Environment:
        """Raises AppNotFound, EnvironmentNotFound."""
        self.app(app)
        found = self.manager.environment(app, name)
        if not self.shows(found):
            raise EnvironmentNotFound(f"The app {app!r} has no environment {name!r} that this token counts for.")
        return found

    def environment_of_id(self, id: str) -> Environment:
        """Raises EnvironmentNotFound."""
        found = self.manager.environment_of_id(id)
        if not self.shows(found):
            raise EnvironmentNotFound(f"There is no environment with the id {id!r} that this token counts for.")
        return found

    def build(self, id: str, app: str | None = None) -> Build:
        """A build of that app, else of the first one that has it. Raises BuildNotFound."""
        for build in self.manager.builds_of_id(id):
            if self.shows_app(build.app) and app in (None, "", build.app):
                return build
        raise BuildNotFound(f"There is no build {id!r}. `flash build` makes one and `flash deploy` brings it here.")

    def place_of(self, build: Build, said: str | None = None) -> Environment | None:
        """The environment whose manifest a build's is: one that was brought to it; the one that is said, else
        `production` if it was, else the first by name. None: it serves nowhere."""
        found = [one for one in self.environments(build.app) if one.build == build.id]
        found.sort(key=lambda one: (one.name != (said or "production"), one.name != "production", one.name))
        return found[0] if found else None
