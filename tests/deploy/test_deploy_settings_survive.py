"""Every declared setting reaches the worker that serves it: declaration → manifest → archive → unpacked → worker."""

import asyncio
import dataclasses
import enum
import json
import tempfile
from pathlib import Path
from typing import Any

from declared_settings import (
    CLASSES,
    ENDPOINT,
    IMPORTS,
    REMOTE,
    SECRET,
    SETTINGS,
    arguments,
    given_settings,
    untried_settings,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import flashmesh
from flashmesh.deploy.build import build
from flashmesh.deploy.local.plans import Surroundings, worker_spec
from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import BuildId
from flashmesh.project.identity import identity_of
from flashmesh.project.restored import project_of, with_env
from flashmesh.project.unpack import remove, unpack
from flashmesh.worker.spec import WorkerSpec

MANY = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def as_served(source: str) -> tuple[ResourceConfig, dict[str, str], bytes]:
    """What a worker of the only resource of `source` is told: settings, variables; and the archive's manifest."""
    with tempfile.TemporaryDirectory() as folder:
        root, unpacked = Path(folder, "p"), Path(folder, "u")
        root.mkdir()
        (root / "a.py").write_text(source)
        built = asyncio.run(build(root))
        manifest = unpack(built.artifact.path, unpacked)
        packed = (unpacked / "flash_manifest.json").read_bytes() + (root / ".flash/manifest.json").read_bytes()
        project = project_of(manifest, unpacked)
        (entry,) = manifest["resources"].values()
        resource = with_env(project.resources[0], built.env.get(identity_of(entry), {}))
        remove(unpacked)
    spec = worker_spec(
        resource,
        project,
        BuildId("0" * 12),
        generation=1,
        surroundings=Surroundings(link=Path("/l"), manifest=Path("/m")),
        socket_path=Path("/s"),
        site_dirs=[],
        env={},
        cuda_devices=None,
    )
    arrived = WorkerSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    own = {name: value for name, value in arrived.env.items() if name != "FLASH_RESOURCE_NAME"}
    return resource.functions[0].settings(arrived.resource), own, packed


def plain(config: ResourceConfig) -> dict[str, Any]:
    """Its settings as JSON has them, without variables, which travel apart."""
    values = json.loads(json.dumps({**config.to_dict(), "env": None}, default=_in_json))
    if values["template"] is not None:
        values["template"]["env"] = None
    return dict(values)


def _in_json(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else sorted(value)


def check(source: str, declared: ResourceConfig) -> None:
    arrived, env, packed = as_served(source)
    assert plain(arrived) == plain(declared)
    assert env == dict(declared.worker_env)
    assert SECRET.encode() not in packed


def test_every_setting_there_is_is_tried_below() -> None:
    assert untried_settings() == set()


@MANY
@given(st.sampled_from(CLASSES), given_settings(SETTINGS))
def test_every_setting_of_a_resource_class_reaches_its_workers(name: str, given: dict[str, Any]) -> None:
    expression = f"{name}(name='x'{arguments(given)})"
    declared = _declared(expression)
    balanced = declared.is_load_balanced
    route = ", method='POST', path='/f'" if balanced else ""
    check(f"{IMPORTS}conf = {expression}\n@remote(conf{route})\nasync def f(): ...\n", declared)


@MANY
@given(given_settings(ENDPOINT), st.booleans())
def test_every_setting_of_an_endpoint_reaches_its_workers(given: dict[str, Any], routes: bool) -> None:
    expression = f"Endpoint(name='x'{arguments(given)})"
    declared = _declared(expression)
    if routes:
        assume(given.get("mode") != "JOB")
        declared = _declared(f"(api := {expression}, api.post('/f')(lambda: None))[0]")
        check(f"{IMPORTS}api = {expression}\n@api.post('/f')\nasync def f(): ...\n", declared)
    else:
        check(f"{IMPORTS}@{expression}\nasync def f(): ...\n", declared)


@MANY
@given(given_settings(REMOTE))
def test_every_setting_of_a_function_reaches_its_workers(given: dict[str, Any]) -> None:
    source = f"{IMPORTS}conf = LiveServerless(name='x')\n@remote(conf{arguments(given)})\nasync def f(): ...\n"
    arrived, _, _ = as_served(source)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    overrides = _overrides(given)
    assert plain(arrived) == plain(dataclasses.replace(namespace["conf"].to_config(), **overrides))


def test_packages_of_a_function_reach_its_workers(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        f"{IMPORTS}conf = LiveServerless(name='x')\n"
        "@remote(conf, dependencies=['rich'], system_dependencies=['git'], accelerate_downloads=False)\ndef f(): ...\n"
    )
    built = asyncio.run(build(tmp_path))
    (function,) = project_of(built.manifest, tmp_path).functions
    assert (function.dependencies, function.system_dependencies) == (("rich",), ("git",))
    assert not function.accelerate_downloads


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    from flashmesh.functions.remote import OVERRIDES

    values = {name: eval(f"{value!r}") for name, value in given.items() if name in OVERRIDES}
    return {name: OVERRIDES[name](name, value) for name, value in values.items()}


def _declared(expression: str) -> ResourceConfig:
    """The configuration as the class itself has it; examples that it refuses are left out."""
    try:
        config: ResourceConfig = eval(
            expression, {name: getattr(flashmesh, name) for name in flashmesh.__all__}
        ).to_config()
    except FlashmeshError:
        assume(False)
        raise
    return config
