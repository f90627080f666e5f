"""Endpoints on this machine: what is started when, what an update does, what happens when something fails."""

from pathlib import Path

from local_target_fixtures import B1, B2, House, function, method, play, project, resource

from flashmesh.deploy.local.gpus import Gpu
from flashmesh.deploy.local.plans import callables_of, endpoint_plan, gives_up, modules_of, requirements_of
from flashmesh.functions.config import VolumeConfig
from flashmesh.functions.errors import EndpointUnavailable, EnvironmentFailed
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.wire.failures import unpack
from flashmesh.wire.frames import Cancel, Error, Scale, Update
from flashmesh.worker.keeper.client import TemplateExited, TemplateWanted

M = EndpointName("m")
GPU = Gpu(0, "GPU-0", "NVIDIA H100 80GB HBM3", 80 * 10**9)


async def declared(house: House, **config: object) -> None:
    one = resource(**config)  # type: ignore[arg-type]
    await house.target.declare(one, project(one), B1)


def test_declaring_opens_sockets_and_starts_nothing(tmp_path: Path) -> None:
    """Templates and environments wait for the first call; peers already have an address."""

    async def story(house: House) -> None:
        await declared(house, dependencies=("numpy",))
        assert house.keeper.opened == ["m"]
        assert (house.keeper.started, house.environments.prepared) == ([], [])
        assert house.target.sockets()["m"].socket_path == tmp_path / "endpoints" / "m.sock"
        assert house.state() == "cold"

    play(tmp_path, story)


def test_the_first_call_builds_the_environment_and_starts_the_template(tmp_path: Path) -> None:
    """In that order, shown as building and then warm; the workers wanted are asked for once it is connected."""

    async def story(house: House) -> None:
        import asyncio

        house.environments.lacking = {"numpy"}
        house.environments.gate = asyncio.Event()
        await declared(house, dependencies=("numpy",))
        house.call("e1")
        await house.until(lambda: house.environments.prepared)
        assert (house.state(), house.keeper.started) == ("building", [])
        house.environments.gate.set()
        await house.until(lambda: house.keeper.started)
        (spec,) = house.keeper.started
        assert (spec.site_dirs, spec.build, spec.generation, spec.functions) == (["/env"], "b1", 1, ["m.f"])
        port = house.link()
        assert (house.state(), port.sent) == ("warm", [Scale(1)])

    play(tmp_path, story)


def test_prestart_never_installs_anything(tmp_path: Path) -> None:
    """An endpoint whose packages are missing stays cold until it is called."""

    async def story(house: House) -> None:
        house.environments.lacking = {"torch"}
        one, two = resource("m", dependencies=("torch",)), resource("n")
        for each in (one, two):
            await house.target.declare(each, project(one, two), B1)
        assert not house.target.prestart(M)
        assert house.target.prestart(EndpointName("n"))
        await house.until(lambda: house.keeper.started)
        assert [spec.endpoint for spec in house.keeper.started] == ["n"]

    play(tmp_path, story)


def test_an_environment_that_cannot_be_built_fails_the_calls_with_the_installers_message(tmp_path: Path) -> None:
    """The next call tries again."""

    async def story(house: House) -> None:
        house.environments.error = EnvironmentFailed("no matching distribution: nope")
        await declared(house, dependencies=("nope",))
        house.call("e1")
        await house.until(lambda: house.client.answers)
        answer = house.client.answers["e1"]
        assert isinstance(answer, Error) and answer.code == "ENVIRONMENT_FAILED"
        assert "no matching distribution" in unpack(answer.payload).message
        house.environments.error = None
        house.call("e2")
        await house.until(lambda: house.keeper.started)

    play(tmp_path, story)


def test_an_update_goes_to_the_running_template(tmp_path: Path) -> None:
    """UPDATE carries the new build and generation; nothing is started, the keeper knows it for later."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        port = house.link()
        one = resource(execution_timeout_ms=5000)
        await house.target.update(one, project(one), B2)
        update = port.sent[-1]
        assert isinstance(update, Update)
        assert (update.spec["build"], update.spec["generation"]) == ("b2", 2)
        assert update.spec["config"]["execution_timeout_ms"] == 5000
        assert [spec.build for spec in house.keeper.remembered] == ["b2"]
        assert len(house.keeper.started) == 1

    play(tmp_path, story)


def test_an_update_that_needs_packages_ends_the_old_template_and_waits_for_a_call(tmp_path: Path) -> None:
    """Nothing is downloaded unasked, and old code does not go on answering."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        house.link()
        house.dispatcher.withdraw(M)
        house.environments.lacking = {"polars"}
        one = resource(dependencies=("polars",))
        await house.target.update(one, project(one), B2)
        await house.until(lambda: house.keeper.stopped)
        assert len(house.environments.prepared) == 1
        house.call("e2")
        await house.until(lambda: len(house.keeper.started) == 2)
        assert house.keeper.started[1].site_dirs == ["/env"]

    play(tmp_path, story)


def test_a_template_that_connects_with_an_older_build_is_brought_up_to_date(tmp_path: Path) -> None:
    """A file saved while the template starts: it gets the UPDATE as soon as it is there."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        one = resource()
        await house.target.update(one, project(one), B2)
        port = house.link("b1")
        assert [type(frame) for frame in port.sent] == [Update, Scale]

    play(tmp_path, story)


def test_settings_changed_while_the_template_starts_reach_it_though_the_build_is_the_same(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        one = resource(mode="JOB")
        await house.target.update(one, project(one), B1)
        port = house.link("b1")
        update = port.sent[0]
        assert isinstance(update, Update)
        assert update.spec["config"]["mode"] == "JOB"
        assert [type(frame) for frame in house.link("b1", generation=2).sent] == [Scale]

    play(tmp_path, story)


def test_a_file_saved_while_its_environment_is_built_starts_with_the_new_build(tmp_path: Path) -> None:
    """One template, of the build that is on disk."""

    async def story(house: House) -> None:
        import asyncio

        house.environments.gate = asyncio.Event()
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.environments.prepared)
        one = resource()
        await house.target.update(one, project(one), B2)
        house.environments.gate.set()
        await house.until(lambda: house.keeper.started)
        assert [spec.build for spec in house.keeper.started] == ["b2"]

    play(tmp_path, story)


def test_a_template_that_ends_is_started_again_when_calls_wait(tmp_path: Path) -> None:
    """And not when none does."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        house.link()
        house.keeper.on_event(TemplateExited("m", 1, -9, 1, "killed"))
        await house.until(lambda: len(house.keeper.started) == 2)
        assert house.client.answers == {}

    play(tmp_path, story)


def test_a_template_that_keeps_ending_fails_its_calls_with_the_reason(tmp_path: Path) -> None:
    """The third time in a row the callers are told."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        house.keeper.on_event(TemplateExited("m", 1, 1, 3, "it ended with exit status 1 three times"))
        answer = house.client.answers["e1"]
        assert isinstance(answer, Error) and answer.code == "ENDPOINT_UNAVAILABLE"
        assert "three times" in unpack(answer.payload).message
        assert gives_up(1, 3) and not gives_up(1, 2) and not gives_up(0, 9)

    play(tmp_path, story)


def test_a_peer_that_connects_to_a_cold_endpoint_starts_it(tmp_path: Path) -> None:
    """The keeper asks when it has no spec yet."""

    async def story(house: House) -> None:
        await declared(house)
        house.keeper.on_event(TemplateWanted("m", started=False))
        await house.until(lambda: house.keeper.started)

    play(tmp_path, story)


def test_a_lost_keeper_is_replaced_and_its_sockets_opened_anew(tmp_path: Path) -> None:
    """Waiting calls get a template of the new one."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        house.link()
        house.keeper.die()
        await house.until(lambda: len(house.keepers) == 2 and house.keeper.started)
        assert "m" in house.keeper.opened
        assert house.client.answers == {}

    play(tmp_path, story)


def test_a_keeper_that_cannot_be_started_fails_the_calls_and_is_tried_again(tmp_path: Path) -> None:
    """Out of processes now is not out of processes for ever."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.client.answers)
        answer = house.client.answers["e1"]
        assert isinstance(answer, Error) and answer.code == "ENDPOINT_UNAVAILABLE"
        house.keeper_error = None
        house.call("e2")
        await house.until(lambda: house.keepers and house.keeper.started)

    play(tmp_path, story, keeper_error=OSError(11, "Resource temporarily unavailable"))


def test_removing_an_endpoint_fails_what_waits_and_closes_its_sockets(tmp_path: Path) -> None:
    """It can be declared again at once."""

    async def story(house: House) -> None:
        await declared(house)
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        await house.target.remove(M)
        assert isinstance(house.client.answers["e1"], Error)
        await declared(house)
        assert house.keeper.removed == ["m"]
        assert list(house.target.sockets()) == ["m"]
        house.call("e2")
        await house.until(lambda: len(house.keeper.started) == 2)

    play(tmp_path, story)


def test_closing_drains_through_the_keeper(tmp_path: Path) -> None:
    """The limit is passed on; nothing starts afterwards."""

    async def story(house: House) -> None:
        await declared(house)
        await house.target.close(2.5)
        assert house.keeper.closed_with == 2.5
        house.target.ensure(M)
        assert house.keeper.started == []

    play(tmp_path, story)


def test_scale_and_cancel_reach_the_template(tmp_path: Path) -> None:
    """Over its link, when it has one."""

    async def story(house: House) -> None:
        await declared(house)
        house.target.cancel(M, "e1")  # type: ignore[arg-type]
        port = house.link()
        house.target.scale(M, 3)
        house.target.cancel(M, "e1")  # type: ignore[arg-type]
        assert port.sent == [Scale(3), Cancel("e1")]
        house.target.template_unlinked(M, port)
        house.target.scale(M, 4)
        assert len(port.sent) == 2

    play(tmp_path, story)


def test_a_gpu_resource_sees_its_gpus(tmp_path: Path) -> None:
    """By uuid."""

    async def story(house: House) -> None:
        await declared(house, gpus=("HOPPER_80",))
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        assert house.keeper.started[0].cuda_devices == "GPU-0"

    play(tmp_path, story, gpus=(GPU,))


def test_without_gpu_a_gpu_resource_runs_on_cpu_and_the_session_says_so_once(tmp_path: Path) -> None:
    """One line for all of them."""

    async def story(house: House) -> None:
        one, two = resource("m", gpus=("ANY",)), resource("n", gpus=("ANY",))
        for each in (one, two):
            await house.target.declare(each, project(one, two), B1)
        house.call("e1", "m.f")
        house.call("e2", "n.f")
        await house.until(lambda: len(house.keeper.started) == 2)
        assert [spec.cuda_devices for spec in house.keeper.started] == [None, None]
        assert [line for _, line in house.notices] == ["no GPU here: running on CPU"]

    play(tmp_path, story)


def test_an_endpoint_waits_for_a_gpu_that_is_not_shared_and_takes_it_from_an_idle_one(tmp_path: Path) -> None:
    """`queued: waiting for GPU` is shown meanwhile."""

    async def story(house: House) -> None:
        one, two = (resource(name, gpus=("ANY",), gpu_share=False) for name in ("m", "n"))
        for each in (one, two):
            await house.target.declare(each, project(one, two), B1)
        house.target.prestart(M)
        await house.until(lambda: house.keeper.started)
        house.link("b1", "m")
        house.call("e2", "n.f")
        await house.until(lambda: len(house.keeper.started) == 2)
        assert house.keeper.stopped == ["m"]
        assert ("n", "queued: waiting for GPU") in house.notices
        assert house.keeper.started[1].cuda_devices == "GPU-0"

    play(tmp_path, story, gpus=(GPU,))


def test_missing_system_packages_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    """Printed, never run; the call goes on."""

    async def story(house: House) -> None:
        await declared(house, system_dependencies=("no-such-package-anywhere",))
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        ((_, line),) = house.notices
        assert "apt-get install -y no-such-package-anywhere" in line

    play(tmp_path, story)


def test_volumes_env_and_name_reach_the_worker_and_the_resources_own_env_wins(tmp_path: Path) -> None:
    """What the resource declares stands above what we set."""

    async def story(house: House) -> None:
        await declared(house, volumes=(VolumeConfig(name="v"),), env={"A": "1", "FLASH_VOLUME_PATH": "/mine"})
        house.call("e1")
        await house.until(lambda: house.keeper.started)
        assert house.keeper.started[0].env == {"FLASH_RESOURCE_NAME": "m", "FLASH_VOLUME_PATH": "/mine", "A": "1"}

    play(tmp_path, story)


def test_a_keeper_that_refuses_fails_the_endpoint(tmp_path: Path) -> None:
    """Its words reach the caller."""

    async def story(house: House) -> None:
        await declared(house)
        house.keeper.refusal = EndpointUnavailable("no more processes")
        house.call("e1")
        await house.until(lambda: house.client.answers)
        answer = house.client.answers["e1"]
        assert isinstance(answer, Error) and "no more processes" in unpack(answer.payload).message

    play(tmp_path, story)


def test_callables_modules_and_requirements_are_read_from_the_resource() -> None:
    """A class serves one callable per public method, `local=True` or not; packages add up without ours."""
    one = resource(
        functions=(
            function("a.b", "f", dependencies=("numpy>=1", "runpod-flash")),
            function("a.b", "g", local=True),
            function("c", "Counter", kind="class", methods=(method("inc"), method("get"))),
        ),
        dependencies=("torch",),
        workers_max=0,
        retries=2,
    )
    assert callables_of(one) == {"a.b.f", "a.b.g", "c.Counter.inc", "c.Counter.get"}
    assert [(entry.module, entry.file) for entry in modules_of(one, Path("/r"))] == [
        ("a.b", "/r/a/b.py"),
        ("c", "/r/c.py"),
    ]
    assert requirements_of(one) == ("torch", "numpy>=1")
    plan = endpoint_plan(one, B1)
    assert (plan.workers_max, plan.retries, plan.build, plan.own) == (1, 2, "b1", {})


def test_a_functions_own_limits_and_retries_reach_the_queue() -> None:
    """Of several functions on one endpoint, each has what it declared, and the others what the endpoint has."""
    one = resource(
        functions=(
            function("w", "f", overrides=(("execution_timeout_ms", 500), ("retries", 2))),
            function("w", "g"),
            function("w", "C", kind="class", methods=(method("m"),), overrides=(("retry_on", ("x.Y",)),)),
        ),
        execution_timeout_ms=9000,
    )
    plan = endpoint_plan(one, B1)
    assert [plan.limit_ms(FunctionId(name)) for name in ("w.f", "w.g", "w.C.m")] == [500, 9000, 9000]
    assert [plan.of(FunctionId(name)).retries for name in ("w.f", "w.g", "w.C.m")] == [2, 0, 0]
    assert plan.of(FunctionId("w.C.m")).retry_on == ("x.Y",)
