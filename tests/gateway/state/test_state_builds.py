"""How an artifact becomes a build: its manifest written down, what is none refused, leave to send it for a while."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from state_fixtures import State, packed, plain_unpack

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.state.artifacts import ArtifactRefused, ArtifactStore
from flashmesh.gateway.state.builds import TICKET_S, Builds, UploadNotFound
from flashmesh.gateway.state.manager import UNUSED_BUILD_S
from flashmesh.gateway.state.records import AppNotFound

DATA, ID = packed({"flash_manifest.json": b'{"version": "1.0", "resources": {}}'})


async def stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


class Made:
    def __init__(self, folder: Path) -> None:
        self.state = State(folder / "server.db")
        self.artifacts = ArtifactStore(folder / "artifacts", unpack=plain_unpack)
        self.builds = Builds(self.state.manager, self.artifacts, clock=lambda: self.state.now)
        self.run = self.state.run

    def names(self) -> set[str]:
        return {path.name for path in self.artifacts.folder.iterdir()}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    found = Made(tmp_path)
    yield found
    found.state.close()


def test_an_artifact_that_came_is_a_build_of_its_app_with_its_manifest(made: Made) -> None:
    build = made.run(made.builds.receive(stream(DATA), ID, "shop"))
    assert (build.id, build.app, build.bytes) == (ID, "shop", len(DATA))
    assert made.state.manager.build_manifest("shop", ID) == {"version": "1.0", "resources": {}}
    assert made.names() == {ID, f"{ID}.tar.gz"}


@pytest.mark.parametrize("manifest", [None, b"", b"{", b"\xff"])
def test_an_artifact_without_a_manifest_is_refused_and_removed(made: Made, manifest: bytes | None) -> None:
    data, id = packed({"gpu.py": b"1", **({} if manifest is None else {"flash_manifest.json": manifest})})
    with pytest.raises(ArtifactRefused, match="no manifest"):
        made.run(made.builds.receive(stream(data), id, "shop"))
    assert not {name for name in made.names() if not name.startswith(".")}
    assert made.state.manager.builds("shop") == []


def test_what_an_unpacker_refuses_is_removed(made: Made) -> None:
    class Hostile(FlashmeshError):
        status = 422

    def refuse(archive: Path, folder: Path) -> dict[str, object]:
        raise Hostile

    made.artifacts._unpack = refuse
    with pytest.raises(Hostile):
        made.run(made.builds.receive(stream(DATA), ID, "shop"))
    assert made.names() == set()


def test_leave_to_send_an_artifact_counts_once_and_for_a_while(made: Made) -> None:
    app = made.run(made.state.manager.create_app("shop")).id
    ticket = made.builds.open_ticket(app)
    with pytest.raises(UploadNotFound, match="Send it with PUT first"):
        made.run(made.builds.finish(ticket.key, app))
    assert made.run(made.builds.receive_for(stream(DATA), ticket.key)) == ID
    with pytest.raises(UploadNotFound):
        made.run(made.builds.receive_for(stream(DATA), ticket.key))
    other = made.run(made.state.manager.create_app("bank")).id
    with pytest.raises(UploadNotFound):
        made.run(made.builds.finish(ticket.key, other))
    assert made.run(made.builds.finish(ticket.key, app)).app == "shop"
    with pytest.raises(UploadNotFound):
        made.run(made.builds.finish(ticket.key, app))
    late = made.builds.open_ticket(app)
    made.state.now += TICKET_S
    with pytest.raises(UploadNotFound):
        made.run(made.builds.receive_for(stream(DATA), late.key))


def test_a_build_of_an_app_that_went_meanwhile_is_refused(made: Made) -> None:
    app = made.run(made.state.manager.create_app("shop")).id
    ticket = made.builds.open_ticket(app)
    made.run(made.builds.receive_for(stream(DATA), ticket.key))
    made.run(made.state.manager.delete_app("shop"))
    with pytest.raises(AppNotFound):
        made.run(made.builds.finish(ticket.key, app))


def test_with_a_build_that_comes_those_that_nobody_uses_go(made: Made) -> None:
    made.run(made.builds.receive(stream(DATA), ID, "shop"))
    archive = made.artifacts.folder / f"{ID}.tar.gz"
    long_ago = time.time() - 2 * UNUSED_BUILD_S
    for path in (archive, made.artifacts.folder / ID):
        os.utime(path, (long_ago, long_ago))
    data, id = packed({"flash_manifest.json": b"{}"})
    made.run(made.builds.receive(stream(data), id, "shop"))
    assert {one.id for one in made.state.manager.builds("shop")} == {ID, id}
    made.state.now += UNUSED_BUILD_S + 1
    made.run(made.builds.receive(stream(data), id, "shop"))
    assert {one.id for one in made.state.manager.builds("shop")} == {id}
    assert made.names() == {id, f"{id}.tar.gz"}
