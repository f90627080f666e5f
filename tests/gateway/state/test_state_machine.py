"""The State Manager against a model of dictionaries: whatever is done in whatever order, restarts included."""

import contextlib
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from state_fixtures import State, entry

from flashmesh.gateway.state.records import (
    AlreadyExists,
    AppNotFound,
    BuildNotFound,
    Deployment,
    DeploymentEnded,
    DeploymentNotFound,
    DeploymentRunning,
    EnvironmentNotFound,
    StateError,
    StillDeployed,
)

NAMES = st.sampled_from(["shop", "shop", "shop", "bank"])
PLACES = st.sampled_from(["production", "production", "production", "staging"])
BUILDS = st.sampled_from(["aaaaaaaaaaaa", "bbbbbbbbbbbb"])
IDENTITIES = st.sampled_from(["gpu.py|", "cpu.py|", "cpu.py|other"])
STATUSES = st.sampled_from(["succeeded", "failed", "interrupted"])
VALUES = st.dictionaries(st.sampled_from(["A", "B"]), st.text(max_size=3), max_size=2)


@dataclasses.dataclass
class ModelEnvironment:
    served: dict[str, tuple[dict[str, Any], dict[str, str]]] = dataclasses.field(default_factory=dict)
    deployments: list[Deployment] = dataclasses.field(default_factory=list)
    running: str | None = None


@dataclasses.dataclass
class ModelApp:
    builds: set[str] = dataclasses.field(default_factory=set)
    environments: dict[str, ModelEnvironment] = dataclasses.field(default_factory=dict)


class StateMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.state = State(self.folder / "server.db")
        self.apps: dict[str, ModelApp] = {}
        self.ended: dict[str, str] = {}
        self.ensure("shop", "production")
        self.add_build("shop", "aaaaaaaaaaaa", {})

    def teardown(self) -> None:
        self.state.close()
        shutil.rmtree(self.folder)

    def found(self, app: str, place: str) -> ModelEnvironment | None:
        return self.apps[app].environments.get(place) if app in self.apps else None

    @rule(app=NAMES)
    def create_app(self, app: str) -> None:
        with self.refused(AlreadyExists if app in self.apps else None):
            self.state.run(self.state.manager.create_app(app))
        self.apps.setdefault(app, ModelApp())

    @rule(app=NAMES, place=PLACES)
    def create_environment(self, app: str, place: str) -> None:
        expected = AppNotFound if app not in self.apps else AlreadyExists if self.found(app, place) else None
        with self.refused(expected):
            self.state.run(self.state.manager.create_environment(app, place))
        if expected is None:
            self.apps[app].environments[place] = ModelEnvironment()

    @rule(app=NAMES, place=PLACES)
    def ensure(self, app: str, place: str) -> None:
        self.state.run(self.state.manager.ensure(app, place))
        self.apps.setdefault(app, ModelApp()).environments.setdefault(place, ModelEnvironment())

    @rule(app=NAMES, build=BUILDS, manifest=st.sampled_from([{}, {"resources": {}}]))
    def add_build(self, app: str, build: str, manifest: dict[str, Any]) -> None:
        with self.refused(AppNotFound if app not in self.apps else None):
            self.state.run(self.state.manager.add_build(app, build, manifest))
        if app in self.apps:
            self.apps[app].builds.add(build)
            assert self.state.manager.build_manifest(app, build) == manifest

    @rule(app=NAMES, place=PLACES, build=st.none() | BUILDS, values=VALUES)
    def begin_deployment(self, app: str, place: str, build: str | None, values: dict[str, str]) -> None:
        found = self.found(app, place)
        expected: type[StateError] | None = None
        if app not in self.apps:
            expected = AppNotFound
        elif found is None:
            expected = EnvironmentNotFound
        elif build is not None and build not in self.apps[app].builds:
            expected = BuildNotFound
        elif found.running is not None:
            expected = DeploymentRunning
        manager = self.state.manager
        with self.refused(expected):
            begun = self.state.run(manager.begin(app, place, build, wanted={"b": build}, env={"gpu.py|": values}))
            assert found is not None
            assert begun.number == len(found.deployments) + 1
            assert (manager.wanted(begun.id), manager.wanted_env(begun.id)) == ({"b": build}, {"gpu.py|": values})
            found.deployments.append(begun)
            found.running = begun.id

    @rule(app=NAMES, place=PLACES, status=STATUSES)
    def finish_deployment(self, app: str, place: str, status: Any) -> None:
        found = self.found(app, place)
        if found is None or not found.deployments:
            with self.refused(DeploymentNotFound):
                self.state.run(self.state.manager.finish("dep-000000000000", status))
            return
        last = found.deployments[-1]
        ended = self.ended.get(last.id)
        with self.refused(DeploymentEnded if ended not in (None, status) else None):
            self.state.run(self.state.manager.finish(last.id, status))
        if ended is None:
            self.ended[last.id] = status
            found.running = None

    @rule(app=NAMES, place=PLACES, identity=IDENTITIES, build=BUILDS, values=st.none() | VALUES)
    def record(self, app: str, place: str, identity: str, build: str, values: dict[str, str] | None) -> None:
        found = self.found(app, place)
        if found is None:
            return
        id = self.state.manager.environment(app, place).id
        said = entry(build, identity.replace("|", "_"))
        self.state.run(self.state.manager.record(id, identity, said, name=identity, env=values))
        before = found.served.get(identity, ({}, {}))[1]
        found.served[identity] = (said, before if values is None else values)

    @rule(app=NAMES, place=PLACES, identity=IDENTITIES)
    def forget(self, app: str, place: str, identity: str) -> None:
        found = self.found(app, place)
        if found is not None:
            id = self.state.manager.environment(app, place).id
            self.state.run(self.state.manager.record(id, identity, None))
            found.served.pop(identity, None)

    @rule(app=NAMES, place=PLACES)
    def delete_environment(self, app: str, place: str) -> None:
        found = self.found(app, place)
        expected: type[StateError] | None = AppNotFound if app not in self.apps else None
        if expected is None and found is None:
            expected = EnvironmentNotFound
        elif found is not None:
            expected = DeploymentRunning if found.running else StillDeployed if found.served else None
        with self.refused(expected):
            self.state.run(self.state.manager.delete_environment(app, place))
        if expected is None:
            del self.apps[app].environments[place]

    @rule(app=NAMES)
    def delete_app(self, app: str) -> None:
        places = self.apps[app].environments.values() if app in self.apps else ()
        expected: type[StateError] | None = None
        if app not in self.apps:
            expected = AppNotFound
        elif any(one.running for one in places):
            expected = DeploymentRunning
        elif any(one.served for one in places):
            expected = StillDeployed
        with self.refused(expected):
            self.state.run(self.state.manager.delete_app(app))
        if expected is None:
            del self.apps[app]

    @precondition(lambda self: self.apps)
    @rule()
    def restart(self) -> None:
        self.state.restart()

    @invariant()
    def what_is_told_is_what_was_done(self) -> None:
        if not hasattr(self, "apps"):
            return
        manager = self.state.manager
        assert [one.name for one in manager.apps()] == sorted(self.apps)
        running = set()
        for name, app in self.apps.items():
            assert {one.id for one in manager.builds(name)} == app.builds
            assert [one.name for one in manager.environments(name)] == sorted(app.environments)
            for place, found in app.environments.items():
                told = manager.environment(name, place)
                assert (told.resources, told.running) == (len(found.served), found.running)
                assert {one.identity: one.entry for one in manager.served(told.id)} == {
                    identity: said for identity, (said, _) in found.served.items()
                }
                for identity, (_, values) in found.served.items():
                    assert manager.served_env(told.id, identity) == values
                assert [one.id for one in manager.deployments(name, place)] == [
                    one.id for one in reversed(found.deployments)
                ]
                assert len(manager.manifest(name, place)["resources"]) == len(found.served)
                if found.running:
                    running.add(found.running)
        assert {one.id for one in manager.unfinished()} == running

    @contextlib.contextmanager
    def refused(self, expected: type[StateError] | None) -> Any:
        try:
            yield
        except StateError as error:
            assert expected is not None and isinstance(error, expected), f"{error!r} instead of {expected}"
        else:
            assert expected is None, f"not refused with {expected}"


StateMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestStateMachine = StateMachine.TestCase
