"""The manifest of a project."""

import json
from datetime import UTC, datetime
from pathlib import Path

from project_fixtures import WORKER, scanned

from flashmesh.functions.config import ResourceConfig
from flashmesh.project.manifest import EndpointAddress, build_manifest, public_config

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
API = """
    from flashmesh import Endpoint
    api = Endpoint(name="api", env={"TOKEN": "very-secret"})
    @api.post("/x")
    async def x(a: int): ...
    @api.get("/y")
    async def process(): ...
"""
COUNTER = (
    "from flashmesh import Endpoint\n@Endpoint(name='c', dependencies=['rich'])\nclass C:\n    def inc(self): ...\n"
)


def test_the_manifest_says_which_function_belongs_to_which_resource(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"my-gpu.py": WORKER, "api/routes.py": API, "counter.py": COUNTER})
    manifest = build_manifest(project, generated_at=NOW, endpoints={})
    assert manifest["generated_at"] == "2026-01-02T03:04:05Z"
    assert manifest["function_registry"] == {
        "my-gpu.process": "my_gpu",
        "api.routes.x": "api_routes",
        "api.routes.process": "api_routes",
        "counter.C": "counter",
        "x": "api_routes",
        "C": "counter",
    }
    assert manifest["routes"] == {"api_routes": {"POST /x": "api.routes.x", "GET /y": "api.routes.process"}}
    gpu, counter = manifest["resources"]["my_gpu"], manifest["resources"]["counter"]
    assert (gpu["file_path"], gpu["local_path_prefix"], gpu["module_path"]) == ("my-gpu.py", "/my-gpu", "my-gpu")
    assert (gpu["is_load_balanced"], gpu["config_variable"], gpu["makes_remote_calls"]) == (False, "gpu", False)
    (counted,) = counter["functions"]
    assert (counted["is_class"], counted["class_methods"], counted["dependencies"]) == (True, ["inc"], ["rich"])
    assert json.loads(json.dumps(manifest)) == manifest


def test_a_bare_name_that_two_functions_have_is_not_registered(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"a.py": WORKER, "b.py": WORKER})
    registry = build_manifest(project, generated_at=NOW, endpoints={})["function_registry"]
    assert registry == {"a.process": "a", "b.process": "b"}


def test_addresses_are_in_the_manifest_as_far_as_they_are_known(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"a.py": WORKER, "b.py": WORKER})
    address = EndpointAddress(endpoint_url="http://127.0.0.1:8888/a", peer_urls=("unix:/run/a.sock",))
    manifest = build_manifest(project, generated_at=NOW, endpoints={"a": address})
    assert manifest["resources"]["a"]["peer_urls"] == ["unix:/run/a.sock"]
    assert manifest["resources"]["a"]["endpoint_url"] == "http://127.0.0.1:8888/a"
    assert "endpoint_url" not in manifest["resources"]["b"]
    assert manifest["resources_endpoints"] == {"a": "http://127.0.0.1:8888/a"}


def test_values_of_environment_variables_never_enter_the_manifest(tmp_path: Path) -> None:
    manifest = build_manifest(scanned(tmp_path, {"api.py": API}), generated_at=NOW, endpoints={})
    assert manifest["resources"]["api"]["config"]["env"] == ["TOKEN"]
    assert "very-secret" not in json.dumps(manifest)
    config = ResourceConfig(
        resource_type="LiveServerless",
        env={"A": "hush"},
        template={"env": {"B": "hush"}, "ports": "80"},
        extra={"env": [{"key": "C", "value": "hush"}]},
    )
    shown = public_config(config)
    assert (shown["env"], shown["template"]["env"], shown["extra"]["env"]) == (["A"], ["B"], ["C"])
    assert shown["template"]["ports"] == "80"
    assert "hush" not in json.dumps(shown)


def test_every_declared_setting_is_in_the_manifest(tmp_path: Path) -> None:
    config = scanned(tmp_path, {"a.py": WORKER}).resources[0].config
    assert public_config(config).keys() == config.to_dict().keys()
