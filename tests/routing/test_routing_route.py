"""Where a call goes: the decision over a manifest, and the file it is read from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.routing.addresses import rules_of
from flashmesh.routing.registry import ServiceRegistry
from flashmesh.routing.route import Local, Own, Remote, Unresolved, decide

OWN = Own(EndpointName("cpu"))
RULES = rules_of("", sockets="/tmp/s")

MANIFEST: dict[str, Any] = {
    "function_registry": {
        "cpu.prepare": "cpu",
        "gpu.train": "gpu",
        "train": "gpu",
        "web.page": "web",
        "lost.f": "gone",
    },
    "resources": {
        "cpu": {"functions": [{"name": "prepare", "module": "cpu"}], "config": {"gpus": []}},
        "gpu": {
            "functions": [{"name": "train", "module": "gpu"}, {"name": "Model", "module": "gpu", "is_class": True}],
            "config": {"gpus": ["ANY"]},
            "peer_urls": ["unix:/tmp/s/gpu.sock"],
        },
        "web": {
            "is_load_balanced": True,
            "endpoint_url": "http://127.0.0.1:8888/web/",
            "functions": [{"name": "page", "module": "web", "http_method": "GET", "http_path": "/page/{n}"}],
            "config": {},
        },
        "new": {"functions": [{"name": "f", "module": "new"}], "config": {}},
    },
}


def test_a_function_of_this_endpoint_is_local() -> None:
    """The endpoint's own function never leaves the process."""
    assert decide(FunctionId("cpu.prepare"), OWN, MANIFEST, RULES) == Local(OWN.endpoint)


@pytest.mark.parametrize("name", ["gpu.train", "train", "gpu.Model"])
def test_a_function_of_another_endpoint_goes_to_its_socket(name: str) -> None:
    """Qualified ids, unique bare names and classes all find the endpoint that serves them."""
    route = decide(FunctionId(name), OWN, MANIFEST, RULES)
    assert isinstance(route, Remote)
    assert (route.endpoint, route.socket) == ("gpu", "/tmp/s/gpu.sock")


def test_a_load_balanced_function_goes_to_its_declared_route() -> None:
    """Method and path come from the declaration, below the resource's address."""
    route = decide(FunctionId("web.page"), OWN, MANIFEST, RULES)
    assert isinstance(route, Remote)
    assert (route.http_method, route.url, route.socket) == ("GET", "http://127.0.0.1:8888/web/page/{n}", "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.f", "does not name function 'nowhere.f'"),
        ("lost.f", "does not describe"),
        ("new.f", "has no address yet"),
    ],
)
def test_an_unresolved_function_says_why(name: str, reason: str) -> None:
    """Each way of not knowing an address is told apart."""
    route = decide(FunctionId(name), OWN, MANIFEST, RULES)
    assert isinstance(route, Unresolved)
    assert reason in route.reason


def test_without_a_manifest_nothing_resolves() -> None:
    """No manifest is a reason of its own."""
    assert decide(FunctionId("gpu.train"), OWN, None) == Unresolved("no manifest is available")


def test_a_changed_manifest_file_is_read_again(tmp_path: Path) -> None:
    """Routes are remembered until the file changes."""
    path = tmp_path / "manifest.json"
    registry = ServiceRegistry(path, own=OWN, rules=RULES)
    assert isinstance(registry.route(FunctionId("gpu.train")), Unresolved)
    path.write_text(json.dumps(MANIFEST))
    assert registry.get_endpoint_for_function("gpu.train") == "unix:/tmp/s/gpu.sock:/gpu.train/run_sync"
    assert registry.get_endpoint_for_function("cpu.prepare") is None
    moved = json.loads(json.dumps(MANIFEST))
    moved["resources"]["gpu"]["peer_urls"] = ["unix:/tmp/s/gpu2.sock"]
    path.write_text(json.dumps(moved))
    route = registry.route(FunctionId("gpu.train"))
    assert isinstance(route, Remote)
    assert route.socket == "/tmp/s/gpu2.sock"


def test_a_half_written_manifest_leaves_the_last_good_one_in_force(tmp_path: Path) -> None:
    """A reader never sees a broken manifest as an empty one."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    registry = ServiceRegistry(path, own=OWN, rules=RULES)
    before = registry.route(FunctionId("gpu.train"))
    path.write_text('{"resources": ')
    assert registry.route(FunctionId("gpu.train")) == before
    path.unlink()
    assert registry.route(FunctionId("gpu.train")) == before


def test_forgetting_reads_the_file_even_if_its_time_stands_still(tmp_path: Path) -> None:
    """An address that does not answer is looked up once more, whatever the file's time says."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    stamp = path.stat()
    registry = ServiceRegistry(path, own=OWN, rules=RULES)
    registry.route(FunctionId("gpu.train"))
    path.write_text(json.dumps(MANIFEST).replace("/tmp/s/gpu.sock", "/tmp/s/gpx.sock"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    registry.look_again()
    route = registry.route(FunctionId("gpu.train"))
    assert isinstance(route, Remote)
    assert route.socket == "/tmp/s/gpx.sock"


def test_an_unknown_function_has_no_endpoint(tmp_path: Path) -> None:
    """The lookup by name raises with the reason."""
    with pytest.raises(KeyError, match="no manifest"):
        ServiceRegistry(tmp_path / "absent.json", own=OWN, rules=RULES).get_endpoint_for_function("f")
