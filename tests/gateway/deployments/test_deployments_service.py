"""What deployments do to an environment, and what is left of them when the server dies in the middle."""

import dataclasses
import json
from pathlib import Path

import pytest
from deployments_fixtures import Bench, play, resource

from flashmesh.functions.errors import FunctionNotFound
from flashmesh.gateway.deployments.service import NothingDeployed, ReplaceNeeded
from flashmesh.gateway.directory import Where
from flashmesh.gateway.state.records import BuildNotFound, DeploymentRunning
from flashmesh.kit.ids import EndpointName
from flashmesh.project.identity import endpoint_id
from flashmesh.project.restored import ManifestInvalid

A, B, C = "a" * 12, "b" * 12, "c" * 12


def test_a_first_deploy_serves_every_resource_and_says_where(tmp_path: Path) -> None:
    """Names are found, the manifest has ids, addresses and the build, and so has the file that workers read."""

    async def scenario(bench: Bench) -> None:
        ended = await bench.deploy(await bench.build(A, resource("cpu", "hello"), resource("gpu", "train")))
        assert (ended.status, ended.number, ended.build) == ("succeeded", 1, A)
        manifest = bench.state.manifest("shop", "production")
        cpu = manifest["resources"]["cpu"]
        id = endpoint_id("shop", "production", "cpu.py|cpu")
        assert (cpu["endpoint_id"], cpu["status"], cpu["build"]) == (id, "deployed", A)
        assert cpu["endpoint_url"].startswith("http://127.0.0.1:")
        assert cpu["gateway_url"] == f"http://127.0.0.1:7470/v2/{id}"
        assert manifest["resources_endpoints"].keys() == {"cpu", "gpu"}
        callee = bench.registry.function("cpu.hello")
        assert (callee.endpoint, callee.named) == (id, True)
        path = bench.manifests.path("shop", "production")
        written = json.loads(path.read_text())
        assert written["resources"] == json.loads(json.dumps(manifest["resources"]))
        assert path.stat().st_mode & 0o777 == 0o600
        assert {one.state for one in bench.state.progress_of(ended.id)} == {"deployed"}

    play(tmp_path, scenario)


def test_a_second_deploy_touches_only_what_changed(tmp_path: Path) -> None:
    """Each resource records the build it runs; counts alone keep the old one; the address never changes."""

    async def scenario(bench: Bench) -> None:
        before = (resource("same"), resource("code"), resource("counts"), resource("gone"))
        await bench.deploy(await bench.build(A, *before))
        first = bench.entries()
        bench.target.log.clear()
        after = (resource("same"), resource("code", source="2"), resource("counts", workers_max=7), resource("fresh"))
        ended = await bench.deploy(await bench.build(B, *after))
        assert ended.status == "succeeded"
        acted = dict(reversed(one) for one in bench.target.log)
        gone = first["gone"]["endpoint_id"]
        assert acted == {"code": "deploy", "counts": "resize", "fresh": "deploy", gone: "remove"}
        second = bench.entries()
        assert {name: entry["build"] for name, entry in second.items()} == {
            "same": A, "code": B, "counts": A, "fresh": B,
        }  # fmt: skip
        for name in ("same", "code", "counts"):
            assert second[name]["endpoint_url"] == first[name]["endpoint_url"]
        assert second["counts"]["config"]["workers_max"] == 7
        with pytest.raises(FunctionNotFound):
            bench.registry.function("gone.run")

    play(tmp_path, scenario)


def test_nothing_is_done_for_a_hundred_unchanged_resources(tmp_path: Path) -> None:
    """The target is asked for nothing and nothing is written: what serves is what it was, build and moment included."""

    async def scenario(bench: Bench) -> None:
        many = [resource(f"r{number}", "f", "g") for number in range(100)]
        await bench.deploy(await bench.build(A, *many))
        before = bench.entries()
        bench.target.log.clear()
        ended = await bench.deploy(await bench.build(B, *many))
        assert (ended.status, bench.target.log) == ("succeeded", [])
        assert bench.entries() == before

    play(tmp_path, scenario)


def test_a_resource_that_fails_leaves_the_others_and_its_own_version_before(tmp_path: Path) -> None:
    """Old build, version and address stay in the manifest with the error; the next deploy tries again."""

    async def scenario(bench: Bench) -> None:
        await bench.deploy(await bench.build(A, resource("cpu"), resource("gpu")))
        before = bench.entries()
        bench.target.broken = {"gpu": "gpu.py: no module named torch"}
        build = await bench.build(B, resource("cpu", source="2"), resource("gpu", source="2"), resource("new"))
        ended = await bench.deploy(build)
        assert ended.status == "failed" and "gpu" in str(ended.error)
        entries = bench.entries()
        assert entries["gpu"] == {**before["gpu"], "status": "failed", "error": "gpu.py: no module named torch"}
        assert entries["cpu"]["build"] == entries["new"]["build"] == B
        assert bench.registry.function("gpu.run").endpoint == before["gpu"]["endpoint_id"]
        assert any("torch" in notice for notice in bench.notices)
        bench.target.broken, bench.target.log = {}, []
        assert (await bench.deploy(build)).status == "succeeded"
        assert bench.target.log == [("deploy", "gpu")]
        assert bench.statuses() == {"cpu": "updated", "gpu": "updated", "new": "deployed"}

    play(tmp_path, scenario)


def test_going_back_to_what_serves_clears_an_earlier_failure(tmp_path: Path) -> None:
    """Its old code is wanted again: that is told to the target, and the error is gone."""

    async def scenario(bench: Bench) -> None:
        await bench.deploy(await bench.build(A, resource("gpu")))
        bench.target.broken = {"gpu": "no torch"}
        await bench.deploy(await bench.build(B, resource("gpu", source="2")))
        bench.target.broken = {}
        assert (await bench.deploy(A)).status == "succeeded"
        assert bench.statuses() == {"gpu": "updated"}
        assert "error" not in bench.entries()["gpu"]

    play(tmp_path, scenario)


def test_a_first_deploy_that_fails_serves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    """It has no address and no names, and its failure is in the manifest; a removal takes that away too."""

    async def scenario(bench: Bench) -> None:
        bench.target.broken = {"gpu": "no torch"}
        build = await bench.build(A, resource("gpu"))
        assert (await bench.deploy(build)).status == "failed"
        entry = bench.entries()["gpu"]
        assert (entry["status"], entry["error"], entry["endpoint_url"]) == ("failed", "no torch", None)
        with pytest.raises(FunctionNotFound):
            bench.registry.function("gpu.run")
        bench.target.broken = {}
        assert (await bench.deploy(build)).status == "succeeded"
        assert bench.statuses() == {"gpu": "deployed"}

    play(tmp_path, scenario)


def test_two_deploys_of_one_environment_never_run_at_once(tmp_path: Path) -> None:
    """The second is told who runs; another environment, and another app, are not concerned."""

    async def scenario(bench: Bench) -> None:
        build = await bench.build(A, resource("cpu"))
        await bench.build(A, resource("cpu"), app="blog")
        bench.target.hold.clear()
        first, _ = await bench.deployments.deploy("shop", "production", build, given={}, by="ci", source="host:/src")
        with pytest.raises(DeploymentRunning) as refusal:
            await bench.deployments.deploy("shop", "production", build, given={})
        assert "ci" in str(refusal.value) and "host:/src" in str(refusal.value) and first.id in str(refusal.value)
        others = [
            (await bench.deployments.deploy(app, environment, build, given={}))[0]
            for app, environment in (("shop", "staging"), ("blog", "production"))
        ]
        bench.target.hold.set()
        assert [(await bench.ended(one)).status for one in (first, *others)] == ["succeeded"] * 3
        ids = {bench.entries(app=app, environment=env)["cpu"]["endpoint_id"]
               for app, env in (("shop", "production"), ("shop", "staging"), ("blog", "production"))}  # fmt: skip
        assert len(ids) == 3
        assert bench.registry.function("cpu.run", Where("shop", "staging")).endpoint in ids

    play(tmp_path, scenario)


def test_a_server_that_dies_in_the_middle_finishes_when_it_is_back(tmp_path: Path) -> None:
    """What was recorded is adopted with the build it runs, and restarted by nobody; the rest is done then."""

    async def scenario(bench: Bench) -> Bench:
        await bench.deploy(await bench.build(A, resource("one"), resource("two")))
        addresses = {name: entry["endpoint_url"] for name, entry in bench.entries().items()}
        build = await bench.build(B, resource("one", source="2"), resource("two", source="2"), resource("three"))
        bench.target.hold.clear()
        begun, _ = await bench.deployments.deploy("shop", "production", build, given={})
        await bench.target.until_busy(3)
        await bench.deployments.close()
        bench.target.hold.set()
        bench.target.log.clear()
        after = await bench.killed()
        assert [name for action, name in bench.target.log if action == "adopt"] == ["one", "two"]
        ended = await after.ended(begun)
        assert (ended.status, ended.number) == ("succeeded", 2)
        assert {name: entry["build"] for name, entry in after.entries().items()} == dict.fromkeys(
            ("one", "two", "three"), B
        )
        assert {name: after.entries()[name]["endpoint_url"] for name in addresses} == addresses
        assert after.registry.function("three.run")
        return after

    play(tmp_path, scenario)


def test_what_cannot_be_taken_up_after_a_start_is_told_and_tried_at_the_next(tmp_path: Path) -> None:
    """The others serve."""

    async def scenario(bench: Bench) -> Bench:
        await bench.deploy(await bench.build(A, resource("one"), resource("two")))
        bench.target.broken = {"two": "Port 41001 is taken"}
        after = await bench.killed()
        assert after.statuses() == {"one": "deployed", "two": "failed"}
        assert any("Port 41001" in notice for notice in after.notices)
        bench.target.broken = {}
        again = await after.killed()
        assert again.statuses() == {"one": "deployed", "two": "deployed"}
        return again

    play(tmp_path, scenario)


@pytest.mark.parametrize("spoil", ["half a fil", '{"resources": {"cpu": {"endpoint_url": "http://127.0.0.1:1"}}}'])
def test_a_manifest_on_disk_that_says_something_else_is_replaced_at_the_next_start(tmp_path: Path, spoil: str) -> None:
    """What is stored counts; the difference is told. An environment that is gone leaves no file."""

    async def scenario(bench: Bench) -> Bench:
        await bench.deploy(await bench.build(A, resource("cpu")))
        path = bench.manifests.path("shop", "production")
        good = json.loads(path.read_text())["resources"]
        path.write_text(spoil)
        stale = bench.manifests.path("shop", "gone")
        stale.write_text("{}")
        after = await bench.killed()
        assert json.loads(path.read_text())["resources"] == good
        assert any("it was replaced" in notice for notice in after.notices)
        assert not stale.exists()
        again = await after.killed()
        assert again.notices == []
        return again

    play(tmp_path, scenario)


def test_worker_counts_can_be_changed_until_the_next_deploy(tmp_path: Path) -> None:
    """In place, and over a restart; the plan shows them, and the next deploy brings the declared ones back."""

    async def scenario(bench: Bench) -> Bench:
        build = await bench.build(A, resource("cpu", workers_max=2))
        await bench.deploy(build)
        bench.registry.amend_deployed = bench.deployments.amend
        described = await bench.registry.patch("cpu.run", b'{"workersMin": 1, "workersMax": 5}')
        assert (described["workersMin"], described["workersMax"]) == (1, 5)
        after = await bench.killed()
        (serving,) = after.target.serving.values()
        assert (serving.resource.config.workers_min, serving.resource.config.workers_max) == (1, 5)
        found = after.deployments.plan("shop", "production", after.state.build_manifest("shop", build), {})
        assert [(one.in_place, sorted(one.fields)) for one in found.changed] == [
            (True, ["config.workers_max", "config.workers_min"])
        ]
        assert (await after.deploy(build)).status == "succeeded"
        assert after.entries()["cpu"]["config"]["workers_max"] == 2
        return after

    play(tmp_path, scenario)


def test_worker_counts_are_not_changed_while_a_deployment_runs(tmp_path: Path) -> None:
    """Whoever asks is told which one."""

    async def scenario(bench: Bench) -> None:
        await bench.deploy(await bench.build(A, resource("cpu")))
        endpoint = bench.registry.function("cpu.run").endpoint
        bench.target.hold.clear()
        begun, _ = await bench.deployments.deploy(
            "shop", "production", await bench.build(B, resource("cpu", source="2")), given={}
        )
        await bench.target.until_busy(1)
        with pytest.raises(DeploymentRunning, match=begun.id):
            await bench.deployments.amend(endpoint, {"workers_max": 9})
        bench.target.hold.set()
        assert (await bench.ended(begun)).status == "succeeded"

    play(tmp_path, scenario)


def test_rolling_back_brings_builds_and_values_of_an_earlier_deployment_back(tmp_path: Path) -> None:
    """As a new deployment, which leaves the address as it is."""

    async def scenario(bench: Bench) -> None:
        identity = "cpu.py|cpu"
        await bench.deploy(await bench.build(A, resource("cpu", env={"K": "?"})), given={identity: {"K": "old"}})
        url = bench.entries()["cpu"]["endpoint_url"]
        await bench.deploy(
            await bench.build(B, resource("cpu", source="2", env={"K": "?"}), resource("extra")),
            given={identity: {"K": "new"}},
        )
        begun, found = await bench.deployments.rollback("shop", "production")
        assert ([one.name for one in found.changed], [one.name for one in found.removed]) == (["cpu"], ["extra"])
        ended = await bench.ended(begun)
        assert (ended.status, ended.kind, ended.build) == ("succeeded", "rollback", A)
        assert bench.entries().keys() == {"cpu"}
        assert bench.entries()["cpu"]["endpoint_url"] == url
        (serving,) = bench.target.serving.values()
        assert serving.resource.config.env == {"K": "old"}

    play(tmp_path, scenario)


def test_other_values_alone_are_a_change_and_show_nowhere(tmp_path: Path) -> None:
    """The plan, the manifest and its file name the variable; the value is in none of them."""

    async def scenario(bench: Bench) -> None:
        identity, secret = "cpu.py|cpu", "s3cr3t-value"
        build = await bench.build(A, resource("cpu", env={"API": "x"}))
        await bench.deploy(build, given={identity: {"API": "first"}})
        manifest = bench.state.build_manifest("shop", build)
        assert bench.deployments.plan("shop", "production", manifest, {identity: {"API": "first"}}).is_empty
        found = bench.deployments.plan("shop", "production", manifest, {identity: {"API": secret}})
        assert [one.name for one in found.changed] == ["cpu"]
        ended = await bench.deploy(build, given={identity: {"API": secret}})
        (serving,) = bench.target.serving.values()
        assert serving.resource.config.env == {"API": secret}
        shown = [
            json.dumps(found.to_dict()),
            json.dumps(bench.state.manifest("shop", "production")),
            bench.manifests.path("shop", "production").read_text(),
            json.dumps(bench.deployments.document(ended)),
        ]
        assert not any(secret in text for text in shown)
        assert (await bench.deploy(build)).status == "succeeded"  # says nothing of values: they stay
        assert bench.target.serving[serving.endpoint].resource.config.env == {"API": secret}

    play(tmp_path, scenario)


def test_undeploy_takes_down_what_is_named_and_nothing_else(tmp_path: Path) -> None:
    """By resource name or endpoint id; `all` is this environment only."""

    async def scenario(bench: Bench) -> None:
        build = await bench.build(A, resource("cpu"), resource("gpu"))
        for environment in ("production", "staging"):
            await bench.deploy(build, environment=environment)
        with pytest.raises(NothingDeployed, match="cpu, gpu"):
            await bench.deployments.undeploy("shop", "production", ["nobody"])
        begun, found = await bench.deployments.undeploy("shop", "production", ["cpu"])
        assert [one.name for one in found.removed] == ["cpu"]
        assert (await bench.ended(begun)).status == "succeeded"
        assert bench.entries().keys() == {"gpu"}
        begun, _ = await bench.deployments.undeploy("shop", "production", None)
        await bench.ended(begun)
        assert bench.entries() == {} and bench.entries(environment="staging").keys() == {"cpu", "gpu"}
        assert not bench.manifests.path("shop", "production").exists()
        assert bench.registry.function("cpu.run").endpoint == endpoint_id("shop", "staging", "cpu.py|cpu")
        await bench.state.delete_environment("shop", "production")

    play(tmp_path, scenario)


def test_removing_what_came_from_another_directory_has_to_be_said(tmp_path: Path) -> None:
    """Nothing is begun; with `replace` it is."""

    async def scenario(bench: Bench) -> None:
        await bench.deploy(await bench.build(A, resource("cpu")), source="laptop:/shop")
        build = await bench.build(B, resource("other"))
        with pytest.raises(ReplaceNeeded, match="laptop:/shop"):
            await bench.deploy(build, source="ci:/work")
        assert bench.entries().keys() == {"cpu"}
        assert (await bench.deploy(build, source="ci:/work", replace=True)).status == "succeeded"
        assert bench.entries().keys() == {"other"}
        build = await bench.build(C, resource("third"))
        assert (await bench.deploy(build, source="ci:/work")).status == "succeeded"

    play(tmp_path, scenario)


def test_what_cannot_be_deployed_at_all_is_refused_before_anything_begins(tmp_path: Path) -> None:
    """An unknown build, an artifact that does not unpack, a manifest that is none."""

    async def scenario(bench: Bench) -> None:
        with pytest.raises(BuildNotFound):
            await bench.deployments.deploy("shop", "production", A, given={})
        assert bench.state.apps() == []
        await bench.state.ensure_app("shop")
        await bench.state.add_build("shop", B, {"version": "1.0", "resources": {"x": {}}})
        with pytest.raises(ManifestInvalid):
            await bench.deployments.deploy("shop", "production", B, given={})
        build = await bench.build(C, resource("cpu"))
        bench.folders.refuse = BuildNotFound("its artifact is gone")
        with pytest.raises(BuildNotFound):
            await bench.deployments.deploy("shop", "production", build, given={})
        assert bench.state.environments() == []

    play(tmp_path, scenario)


def test_a_resource_that_gets_another_name_keeps_its_endpoint(tmp_path: Path) -> None:
    """Identity is file and declared name: in place, at the same address."""

    async def scenario(bench: Bench) -> None:
        await bench.deploy(await bench.build(A, resource("cpu")))
        before = bench.entries()["cpu"]
        renamed = dataclasses.replace(resource("cpu"), name=EndpointName("cpu_first"))
        ended = await bench.deploy(await bench.build(B, renamed, resource("cpu_second")))
        assert ended.status == "succeeded"
        entry = bench.entries()["cpu_first"]
        assert (entry["endpoint_id"], entry["endpoint_url"]) == (before["endpoint_id"], before["endpoint_url"])
        assert "cpu" not in bench.entries()

    play(tmp_path, scenario)
