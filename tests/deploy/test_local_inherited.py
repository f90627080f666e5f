"""Endpoints that an earlier server left serving, as the next one's target takes them over."""

import asyncio
from pathlib import Path

from local_target_fixtures import B1, B2, House, play, project, resource

from flashmesh.deploy.local.gpus import Gpu
from flashmesh.deploy.local.plans import Surroundings, worker_spec
from flashmesh.kit.ids import EndpointName
from flashmesh.wire.frames import Update
from flashmesh.worker.keeper.client import EndpointSockets, KeptEndpoint, TemplateExited
from flashmesh.worker.spec import reentrant_path

GPUS = tuple(Gpu(index, f"GPU-{index}", "NVIDIA H100", 80 * 2**30) for index in range(2))
M = EndpointName("m")


def kept(name: str, *, cuda_devices: str | None = None, template_pid: int = 4001) -> KeptEndpoint:
    one = resource(name)
    path = Path(f"/endpoints/{name}.sock")
    spec = worker_spec(
        one,
        project(one),
        B1,
        generation=3,
        surroundings=Surroundings(link=Path("/link.sock"), manifest=Path("/manifest.json")),
        socket_path=path,
        site_dirs=(),
        env={},
        cuda_devices=cuda_devices,
    )
    return KeptEndpoint(name, EndpointSockets(path, Path(reentrant_path(str(path)))), spec, template_pid, 0)


async def declare(house: House, *names: str, build: str = "b1", **config: object) -> None:
    resources = [resource(name, **config) for name in names]
    for one in resources:
        await house.target.declare(one, project(*resources), B1 if build == "b1" else B2)


def test_a_gpu_of_a_kept_endpoint_is_not_given_to_another(tmp_path: Path) -> None:
    """Whichever of them is declared first."""

    def give(*order: str) -> str | None:
        found: list[str | None] = []

        async def story(house: House) -> None:
            await declare(house, *order, gpus=("ANY",), gpu_share=False)
            house.call("e1", "n.f")
            await house.until(lambda: house.keeper.started)
            found.append(house.keeper.started[0].cuda_devices)

        play(tmp_path, story, gpus=GPUS, kept=[kept("m", cuda_devices="GPU-0")])
        return found[0]

    assert give("m", "n") == give("n", "m") == "GPU-1"


def test_the_gpu_of_a_kept_endpoint_that_is_idle_can_be_had(tmp_path: Path) -> None:
    """Its template is asked to leave, as any other."""

    async def story(house: House) -> None:
        await declare(house, "m", "n", gpus=("ANY",), gpu_share=False)
        house.call("e1", "n.f")
        await house.until(lambda: house.keeper.started)
        assert house.keeper.stopped == ["m"]
        assert house.keeper.started[0].cuda_devices == "GPU-0"

    play(tmp_path, story, gpus=GPUS[:1], kept=[kept("m", cuda_devices="GPU-0")])


def test_the_gpus_of_a_kept_endpoint_are_free_once_its_template_has_ended(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await declare(house, "m", "n", gpus=("ANY",), gpu_share=False)
        house.keeper.on_event(TemplateExited("m", 4001, 0))
        house.call("e1", "n.f")
        await house.until(lambda: house.keeper.started)
        assert house.keeper.started[0].cuda_devices == "GPU-0"
        assert house.keeper.stopped == []

    play(tmp_path, story, gpus=GPUS[:1], kept=[kept("m", cuda_devices="GPU-0")])


def test_a_kept_template_is_not_started_a_second_time(tmp_path: Path) -> None:
    """It dials in by itself; being of the build that is served it is told nothing."""

    async def story(house: House) -> None:
        await declare(house, "m")
        house.call("e1")
        port = house.link("b1", generation=3)
        assert (house.keeper.started, house.keeper.remembered) == ([], [])
        assert not [frame for frame in port.sent if isinstance(frame, Update)]

    play(tmp_path, story, kept=[kept("m")])


def test_a_kept_template_of_another_build_gets_the_one_of_now(tmp_path: Path) -> None:
    """Files were edited while no server was there."""

    async def story(house: House) -> None:
        await declare(house, "m", build="b2")
        port = house.link("b1")
        (update,) = [frame for frame in port.sent if isinstance(frame, Update)]
        assert (update.spec["build"], update.spec["generation"]) == ("b2", 4)
        assert [spec.build for spec in house.keeper.remembered] == ["b2"]

    play(tmp_path, story, kept=[kept("m")])


def test_a_cold_endpoint_that_was_kept_starts_with_the_build_of_now(tmp_path: Path) -> None:
    """Also when a peer wakes it."""

    async def story(house: House) -> None:
        await declare(house, "m", build="b2")
        assert [spec.build for spec in house.keeper.remembered] == ["b2"]
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        assert house.keeper.started[0].build == "b2"

    play(tmp_path, story, kept=[kept("m", template_pid=0)])


def test_what_nobody_declares_any_more_is_ended_and_its_gpu_is_free_then(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await declare(house, "n", gpus=("ANY",), gpu_share=False)
        house.keeper.closing = asyncio.Event()
        await house.target.end_undeclared()
        await house.until(lambda: house.keeper.removed)
        assert house.keeper.removed == ["m"]
        house.call("e1", "n.f")
        await house.until(lambda: ("n", "queued: waiting for GPU") in house.notices)
        house.keeper.closing.set()
        await house.until(lambda: house.keeper.started)
        assert house.keeper.started[0].cuda_devices == "GPU-0"

    play(tmp_path, story, gpus=GPUS[:1], kept=[kept("m", cuda_devices="GPU-0")])
