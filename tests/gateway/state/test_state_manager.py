"""What the State Manager keeps, and what it refuses."""

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from state_fixtures import BUILD, OTHER_BUILD, State, entry

from flashmesh.executions.sqlite.schema import DatabaseDamaged
from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.state.manager import KEPT_DEPLOYMENTS, UNUSED_BUILD_S
from flashmesh.gateway.state.records import (
    AlreadyExists,
    AppNotFound,
    BuildNotFound,
    DeploymentEnded,
    DeploymentNotFound,
    DeploymentRunning,
    EnvironmentNotFound,
    StateDamaged,
    StillDeployed,
)
from flashmesh.project.appname import BadName

MANIFEST = {"version": "1.0", "project_name": "shop", "requirements": ["numpy"], "resources": {}}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "server.db")
    yield made
    made.close()


@pytest.fixture
def deployed(state: State) -> State:
    """With an app, an environment and a build."""
    state.run(state.manager.ensure("shop", "production"))
    state.run(state.manager.add_build("shop", BUILD, MANIFEST, bytes=1000))
    return state


def test_an_app_keeps_its_id_over_restarts(state: State) -> None:
    made = state.run(state.manager.create_app("shop"))
    state.restart()
    assert state.manager.app("shop") == made == state.manager.app_of_id(made.id)


def test_an_app_is_made_once(state: State) -> None:
    state.run(state.manager.create_app("shop"))
    with pytest.raises(AlreadyExists, match="flash app get shop"):
        state.run(state.manager.create_app("shop"))


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "x" * 64, "é"])
def test_a_name_that_cannot_be_one_is_refused(state: State, name: str) -> None:
    with pytest.raises(BadName):
        state.run(state.manager.create_app(name))
    with pytest.raises(BadName):
        state.run(state.manager.ensure("shop", name))
    assert state.manager.apps() == []


def test_a_mistyped_name_is_told_the_nearest(state: State) -> None:
    state.run(state.manager.ensure("shop", "production"))
    with pytest.raises(AppNotFound, match=r"did you mean 'shop'.*flash app list"):
        state.manager.app("shpo")
    with pytest.raises(EnvironmentNotFound, match="did you mean 'production'"):
        state.manager.environment("shop", "producton")


def test_two_apps_have_environments_of_one_name(state: State) -> None:
    shop = state.run(state.manager.ensure("shop", "production"))
    bank = state.run(state.manager.ensure("bank", "production"))
    assert shop.id != bank.id
    assert [one.place for one in state.manager.environments()] == ["bank/production", "shop/production"]
    assert [one.place for one in state.manager.environments("shop")] == ["shop/production"]


def test_ensuring_twice_at_once_makes_one(state: State) -> None:
    async def both() -> None:
        first, second = await asyncio.gather(
            state.manager.ensure("shop", "production"), state.manager.ensure("shop", "production")
        )
        assert first == second

    state.run(both())


def test_a_build_is_kept_for_each_app_that_has_it(deployed: State) -> None:
    deployed.run(deployed.manager.create_app("bank"))
    deployed.run(deployed.manager.add_build("bank", BUILD, MANIFEST, bytes=1000))
    assert [one.app for one in deployed.manager.builds_of_id(BUILD)] == ["bank", "shop"]
    assert deployed.manager.build("bank", BUILD).bytes == 1000
    assert deployed.manager.build_manifest("shop", BUILD) == MANIFEST


def test_a_build_that_is_not_there_is_named(deployed: State) -> None:
    with pytest.raises(BuildNotFound, match="flash build"):
        deployed.manager.build("shop", OTHER_BUILD)
    with pytest.raises(BuildNotFound):
        deployed.run(deployed.manager.begin("shop", "production", OTHER_BUILD))


def test_the_second_of_two_deployments_is_refused_and_told_of_the_first(deployed: State) -> None:
    first = deployed.run(deployed.manager.begin("shop", "production", BUILD, by="ada", source="laptop:/home/ada/shop"))
    with pytest.raises(DeploymentRunning, match="ada from laptop:/home/ada/shop") as refused:
        deployed.run(deployed.manager.begin("shop", "production", BUILD))
    assert refused.value.running == first
    assert refused.value.details == (f"deployment: {first.id}",)


def test_of_many_deployments_at_once_one_begins(deployed: State) -> None:
    async def all_at_once() -> list[object]:
        wanted = [deployed.manager.begin("shop", "production", BUILD, by=str(number)) for number in range(10)]
        return await asyncio.gather(*wanted, return_exceptions=True)

    results = deployed.run(all_at_once())
    refused = [one for one in results if isinstance(one, DeploymentRunning)]
    (begun,) = [one for one in results if not isinstance(one, BaseException)]
    assert len(refused) == 9
    assert {one.running for one in refused} == {begun}


def test_deployments_of_two_environments_run_side_by_side(deployed: State) -> None:
    deployed.run(deployed.manager.create_environment("shop", "staging"))
    first = deployed.run(deployed.manager.begin("shop", "production", BUILD))
    second = deployed.run(deployed.manager.begin("shop", "staging", BUILD))
    assert deployed.manager.unfinished() == sorted([first, second], key=lambda one: one.id)


def test_a_deployment_that_a_crash_cut_short_is_found_with_what_it_wanted(deployed: State) -> None:
    env = {"gpu.py|": {"KEY": "secret"}}
    begun = deployed.run(deployed.manager.begin("shop", "production", BUILD, wanted=MANIFEST, env=env))
    deployed.run(deployed.manager.progress(begun.id, "gpu", "failed", "no GPU"))
    deployed.restart()
    assert deployed.manager.unfinished() == [begun]
    assert deployed.manager.wanted(begun.id) == MANIFEST
    assert deployed.manager.wanted_env(begun.id) == env
    assert [(one.resource, one.state, one.error) for one in deployed.manager.progress_of(begun.id)] == [
        ("gpu", "failed", "no GPU")
    ]


def test_the_next_deployment_begins_when_one_has_ended(deployed: State) -> None:
    first = deployed.run(deployed.manager.begin("shop", "production", BUILD))
    deployed.now += 5
    ended = deployed.run(deployed.manager.finish(first.id, "failed", "gpu: no GPU"))
    assert (ended.status, ended.error, ended.finished_at) == ("failed", "gpu: no GPU", deployed.now)
    second = deployed.run(deployed.manager.begin("shop", "production", BUILD))
    assert (first.number, second.number) == (1, 2)
    assert [one.id for one in deployed.manager.deployments("shop", "production")] == [second.id, first.id]


def test_the_end_of_a_deployment_stays_as_it_is(deployed: State) -> None:
    begun = deployed.run(deployed.manager.begin("shop", "production", BUILD))
    ended = deployed.run(deployed.manager.finish(begun.id, "succeeded"))
    assert deployed.run(deployed.manager.finish(begun.id, "succeeded")) == ended
    with pytest.raises(DeploymentEnded, match="succeeded already"):
        deployed.run(deployed.manager.finish(begun.id, "failed", "late"))
    with pytest.raises(DeploymentNotFound):
        deployed.run(deployed.manager.finish("dep-none", "failed"))


def test_old_deployments_are_forgotten_but_not_the_one_that_serves(deployed: State) -> None:
    first = deployed.run(deployed.manager.begin("shop", "production", BUILD, wanted=MANIFEST))
    deployed.run(deployed.manager.progress(first.id, "gpu", "deployed"))
    deployed.run(deployed.manager.finish(first.id, "succeeded"))
    for _ in range(KEPT_DEPLOYMENTS + 3):
        begun = deployed.run(deployed.manager.begin("shop", "production", BUILD))
        deployed.run(deployed.manager.progress(begun.id, "gpu", "failed"))
        deployed.run(deployed.manager.finish(begun.id, "failed"))
    kept = deployed.manager.deployments("shop", "production")
    assert [one.number for one in kept] == [*range(KEPT_DEPLOYMENTS + 4, 4, -1), 1]
    with pytest.raises(DeploymentNotFound, match="too old"):
        deployed.manager.deployment("dep-none")
    assert len(deployed.database.read("SELECT * FROM state_progress")) == len(kept)


def test_the_manifest_is_what_was_recorded(deployed: State) -> None:
    place = deployed.manager.environment("shop", "production")
    begun = deployed.run(deployed.manager.begin("shop", "production", BUILD, wanted=MANIFEST))
    deployed.run(deployed.manager.record(place.id, "gpu.py|", entry(), name="gpu", env={"KEY": "secret"}))
    found = deployed.manager.manifest("shop", "production")
    assert found["resources"] == {"gpu": entry()}
    assert found["function_registry"] == {"gpu.gpu_call": "gpu", "gpu_call": "gpu"}
    assert found["resources_endpoints"] == {"gpu": "http://127.0.0.1:7001/gpu"}
    assert (found["app"], found["environment"], found["build"]) == ("shop", "production", BUILD)
    assert (found["project_name"], found["requirements"]) == ("shop", ["numpy"])
    assert "secret" not in str(found)
    deployed.run(deployed.manager.finish(begun.id, "succeeded"))
    deployed.restart()
    assert deployed.manager.manifest("shop", "production") == found


def test_values_and_source_of_a_resource_stay_until_others_are_recorded(deployed: State) -> None:
    place = deployed.manager.environment("shop", "production").id
    manager = deployed.manager
    deployed.run(manager.record(place, "gpu.py|", entry(), name="gpu", env={"KEY": "secret"}, source="laptop"))
    deployed.run(manager.record(place, "gpu.py|", entry(status="failed", error="no GPU"), name="gpu"))
    (served,) = manager.served(place)
    assert (served.source, served.entry["error"]) == ("laptop", "no GPU")
    assert manager.served_env(place, "gpu.py|") == {"KEY": "secret"}
    deployed.run(manager.record(place, "gpu.py|", entry(), name="gpu", env={}))
    assert manager.served_env(place, "gpu.py|") == {}
    deployed.run(manager.record(place, "gpu.py|", None))
    assert (manager.served(place), manager.served_env(place, "gpu.py|")) == ([], {})


def test_nothing_is_recorded_for_an_environment_that_is_gone(deployed: State) -> None:
    place = deployed.manager.environment("shop", "production").id
    deployed.run(deployed.manager.delete_environment("shop", "production"))
    with pytest.raises(EnvironmentNotFound):
        deployed.run(deployed.manager.record(place, "gpu.py|", entry(), name="gpu"))
    assert deployed.database.read("SELECT * FROM state_resources") == []


def test_what_serves_is_not_deleted(deployed: State) -> None:
    place = deployed.manager.environment("shop", "production").id
    deployed.run(deployed.manager.record(place, "gpu.py|", entry(), name="gpu"))
    for deletion in (
        deployed.manager.delete_environment("shop", "production"),
        deployed.manager.delete_app("shop"),
    ):
        with pytest.raises(StillDeployed, match="flash undeploy --all"):
            deployed.run(deletion)
    deployed.run(deployed.manager.record(place, "gpu.py|", None))
    deployed.run(deployed.manager.delete_app("shop"))
    for table in ("apps", "environments", "builds", "deployments", "progress", "resources"):
        assert deployed.database.read(f"SELECT * FROM state_{table}") == []


def test_what_is_being_deployed_is_not_deleted(deployed: State) -> None:
    deployed.run(deployed.manager.begin("shop", "production", BUILD))
    for deletion in (
        deployed.manager.delete_environment("shop", "production"),
        deployed.manager.delete_app("shop"),
    ):
        with pytest.raises(DeploymentRunning):
            deployed.run(deletion)


def test_builds_are_forgotten_when_nothing_is_deployed_from_them(deployed: State) -> None:
    place = deployed.manager.environment("shop", "production").id
    deployed.run(deployed.manager.add_build("shop", OTHER_BUILD, MANIFEST))
    deployed.run(deployed.manager.add_build("shop", "cccccccccccc", MANIFEST))
    begun = deployed.run(deployed.manager.begin("shop", "production", OTHER_BUILD))
    deployed.run(deployed.manager.finish(begun.id, "failed"))
    deployed.run(deployed.manager.record(place, "gpu.py|", entry(BUILD), name="gpu"))
    assert deployed.run(deployed.manager.forget_builds()) == {BUILD, OTHER_BUILD, "cccccccccccc"}
    deployed.now += UNUSED_BUILD_S + 1
    assert deployed.run(deployed.manager.forget_builds()) == {BUILD, OTHER_BUILD}


def test_the_build_of_an_environment_is_what_it_was_brought_to(deployed: State) -> None:
    manager = deployed.manager
    place = manager.environment("shop", "production").id
    deployed.run(manager.add_build("shop", OTHER_BUILD, MANIFEST))
    assert manager.environment("shop", "production").build is None
    first = deployed.run(manager.begin("shop", "production", BUILD))
    deployed.run(manager.record(place, "gpu.py|", entry(BUILD), name="gpu"))
    assert manager.environment("shop", "production").build == BUILD
    deployed.run(manager.finish(first.id, "succeeded"))
    second = deployed.run(manager.begin("shop", "production", OTHER_BUILD))
    assert manager.environment("shop", "production").build == BUILD
    deployed.run(manager.finish(second.id, "succeeded"))
    assert manager.environment("shop", "production").build == OTHER_BUILD
    third = deployed.run(manager.begin("shop", "production", None, kind="undeploy"))
    deployed.run(manager.record(place, "gpu.py|", None))
    deployed.run(manager.finish(third.id, "succeeded"))
    assert manager.environment("shop", "production").build is None


def test_while_the_disk_refuses_nothing_changes_and_the_caller_is_told(deployed: State) -> None:
    writing = deployed.database.writer._connection
    writing.execute("PRAGMA query_only = 1")
    with pytest.raises(FlashmeshError) as refused:
        deployed.run(deployed.manager.create_app("bank"))
    assert refused.value.status == 503
    assert [one.name for one in deployed.manager.apps()] == ["shop"]
    writing.execute("PRAGMA query_only = 0")
    deployed.run(deployed.manager.create_app("bank"))
    assert [one.name for one in deployed.manager.apps()] == ["bank", "shop"]


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("state_builds", "manifest"),
        ("state_builds", "published"),
        ("state_deployments", "wanted"),
        ("state_deployments", "env"),
        ("state_resources", "entry"),
        ("state_resources", "env"),
    ],
)
@pytest.mark.parametrize("broken", [b'{"half', b"[]", "text", b"\xff"])
def test_a_row_that_cannot_be_read_stops_the_start_and_a_copy_is_kept(
    deployed: State, table: str, column: str, broken: object
) -> None:
    place = deployed.manager.environment("shop", "production").id
    deployed.run(deployed.manager.begin("shop", "production", BUILD, wanted=MANIFEST))
    deployed.run(deployed.manager.record(place, "gpu.py|", entry(), name="gpu"))
    deployed.execute(f"UPDATE {table} SET {column} = ?", broken)
    with pytest.raises(DatabaseDamaged, match=f"table {table}, row .*, column {column}: .*move server.db") as refused:
        deployed.restart()
    found = re.search(r"A copy is at (\S+)\.", str(refused.value))
    assert found is not None
    copy = sqlite3.connect(found[1])
    assert copy.execute(f"SELECT {column} FROM {table}").fetchall() == [(broken,)]
    copy.close()
    deployed.execute(f"UPDATE {table} SET {column} = ?", b"{}")
    deployed._open()


def test_a_row_that_goes_bad_while_the_server_runs_is_told_and_not_left_out(deployed: State) -> None:
    place = deployed.manager.environment("shop", "production").id
    deployed.run(deployed.manager.record(place, "gpu.py|", entry(), name="gpu"))
    deployed.run(deployed.manager.record(place, "cpu.py|", entry(name="cpu"), name="cpu"))
    deployed.execute("UPDATE state_resources SET entry = ? WHERE name = 'gpu'", b"{")
    with pytest.raises(StateDamaged, match=r"gpu\.py"):
        deployed.manager.manifest("shop", "production")
