"""kill -9 while the State Manager writes: what was told is there, and nothing stands half way."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from state_fixtures import BUILD, State

WRITER = """
import asyncio, json, sys
from pathlib import Path

sys.path.insert(0, {fixtures!r})
from state_fixtures import BUILD, entry
from flashmesh.executions.sqlite.database import Database
from flashmesh.gateway.state.manager import StateManager


def say(*what):
    print(json.dumps(what), flush=True)


async def main():
    manager = StateManager(Database(Path({path!r}), loop=asyncio.get_running_loop()))
    place = await manager.ensure("shop", "production")
    await manager.add_build("shop", BUILD, {{"resources": {{}}}})
    for one in manager.unfinished():
        await manager.finish(one.id, "interrupted")
        say("finish", one.id, "interrupted")
    for turn in range(1_000_000):
        wanted, env = {{"turn": turn}}, {{"a": {{"T": str(turn)}}}}
        begun = await manager.begin("shop", "production", BUILD, wanted=wanted, env=env)
        say("begin", begun.id, turn)
        for name in ("a", "b"):
            await manager.record(place.id, name, entry(name=name, turn=begun.id), name=name, env={{"T": begun.id}})
            say("record", name, begun.id)
        await manager.finish(begun.id, "succeeded")
        say("finish", begun.id, "succeeded")
        other = await manager.ensure("bank", f"e{{turn % 3}}")
        await manager.begin("bank", other.name, None, kind="undeploy")
        await manager.finish(manager.unfinished()[0].id, "failed")
        await manager.delete_app("bank")
        say("gone", "bank", turn)


asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(4))
def test_what_was_told_survives_a_kill_and_nothing_is_half_done(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "server.db"
    source = WRITER.format(path=str(path), fixtures=str(Path(__file__).parent))
    chance = random.Random(seed)
    for _ in range(3):
        told = killed_after(source, chance.randint(1, 60))
        state = State(path)
        try:
            look(state, told)
        finally:
            state.close()


def killed_after(source: str, lines: int) -> list[list[Any]]:
    """What the writer has told when it is killed, somewhere in what it does after so many lines."""
    writer = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [json.loads(writer.stdout.readline()) for _ in range(lines)]
    writer.send_signal(signal.SIGKILL)
    told += [json.loads(line) for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    writer.wait()
    return told


def look(state: State, told: list[list[Any]]) -> None:
    manager = state.manager
    place = manager.environment("shop", "production")
    deployments = {one.id: one for one in manager.deployments("shop", "production")}
    numbers = sorted(one.number for one in deployments.values())
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len([one for one in manager.unfinished() if one.app == "shop"]) <= 1
    for one in deployments.values():
        assert manager.wanted_env(one.id) == {"a": {"T": str((manager.wanted(one.id) or {})["turn"])}}
    last: dict[str, str] = {}
    for what, one, detail in told:
        if what == "finish" and one in deployments:
            assert deployments[one].status == detail
        elif what == "record":
            last[one] = detail
    newest = max(deployments.values(), key=lambda one: one.number)
    for served in manager.served(place.id):
        assert manager.served_env(place.id, served.identity) == {"T": served.entry["turn"]}
        if served.identity in last:
            assert served.entry["turn"] in (last[served.identity], newest.id)
    assert {one.identity for one in manager.served(place.id)} >= set(last)
    known = {app.name for app in manager.apps()}
    assert known <= {"shop", "bank"}
    for table, column, of in (
        ("environments", "app", "apps"),
        ("deployments", "environment", "environments"),
        ("resources", "environment", "environments"),
    ):
        orphans = f"SELECT 1 FROM state_{table} WHERE {column} NOT IN (SELECT id FROM state_{of})"
        assert state.database.read(orphans) == []
    assert manager.build_manifest("shop", BUILD) == {"resources": {}}
