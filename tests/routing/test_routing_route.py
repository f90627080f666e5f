"""Where a call goes: the decision over a manifest, and the file it is read from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


# --- whose manifest it is, and in which form ---

FLASH: dict[str, Any] = {
    "function_registry": {"train": "gpu", "prepare": "cpu", "page": "web"},
    "resources": {
        "gpu": {"functions": ["train"], "is_load_balanced": False},
        "cpu": {"functions": ["prepare"], "is_load_balanced": False},
        "web": {"functions": [{"name": "page", "http_method": "GET", "http_path": "/p"}], "is_load_balanced": True},
    },
    "resources_endpoints": {"gpu": "https://api.runpod.ai/v2/abc", "web": "https://xyz.api.runpod.ai"},
}


def test_flashs_manifest_names_functions_without_their_modules() -> None:
    """RunPod's own endpoints are called as its queue API is, whatever else the manifest says."""
    route = decide(FunctionId("workers.gpu.train"), OWN, FLASH)
    assert isinstance(route, Remote)
    assert (route.url, route.queue, route.alone) == ("https://api.runpod.ai/v2/abc/runsync", True, True)
    web = decide(FunctionId("api.page"), OWN, FLASH)
    assert isinstance(web, Remote)
    assert (web.url, web.http_method) == ("https://xyz.api.runpod.ai/p", "GET")
    assert decide(FunctionId("cpu.prepare"), OWN, FLASH) == Local(OWN.endpoint)


def test_a_function_of_another_module_is_not_taken_for_one_of_the_same_name() -> None:
    """Where the manifest knows modules, `other.train` is not `gpu.train`."""
    assert isinstance(decide(FunctionId("other.train"), OWN, MANIFEST, RULES), Unresolved)


@pytest.mark.parametrize(
    ("own", "is_local"),
    [
        (Own(EndpointName("shop-1a2b3c4d"), "anything"), True),
        (Own(EndpointName("other"), "cpu"), False),
        (Own(EndpointName("other"), "cpu", "shop-1a2b3c4d"), True),
        (Own(EndpointName("cpu")), False),
    ],
)
def test_an_id_decides_which_resource_is_this_endpoint_though_its_name_changed(own: Own, is_local: bool) -> None:
    renamed = {
        "function_registry": {"cpu.prepare": "cpu"},
        "resources": {
            "cpu": {
                "functions": [{"name": "prepare", "module": "cpu"}],
                "endpoint_id": "shop-1a2b3c4d",
                "endpoint_url": "https://x.example",
            }
        },
    }
    assert isinstance(decide(FunctionId("cpu.prepare"), own, renamed), Local) is is_local


def test_a_load_balanced_endpoint_on_this_machine_is_reached_by_its_socket() -> None:
    entry = {
        "is_load_balanced": True,
        "endpoint_id": "web-1",
        "endpoint_url": "http://127.0.0.1:9000",
        "peer_urls": ["unix:/tmp/s/web.sock"],
        "reentrant_url": "unix:/tmp/s/web.again.sock",
        "functions": [{"name": "page", "module": "web", "http_method": "GET", "http_path": "/page/{n}"}],
    }
    route = decide(FunctionId("web.page"), OWN, {"resources": {"web": entry}}, RULES)
    assert isinstance(route, Remote)
    assert (route.endpoint, route.socket, route.reentrant) == ("web-1", "/tmp/s/web.sock", "/tmp/s/web.again.sock")
    assert (route.url, route.http_path) == ("http://127.0.0.1:9000/page/{n}", "/page/{n}")


def test_an_address_that_may_not_be_called_is_a_reason() -> None:
    entry = {"functions": ["f"], "endpoint_url": "http://example.com", "peer_urls": []}
    route = decide(FunctionId("f"), OWN, {"function_registry": {"f": "far"}, "resources": {"far": entry}})
    assert isinstance(route, Unresolved)
    assert "may not be called" in route.reason


words = st.sampled_from(["f", "m.f", "cpu", "gpu", "https://x.example", "http://x.example", "unix:/tmp/s/a.sock", ""])
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
fields = (
    "functions",
    "endpoint_url",
    "peer_urls",
    "endpoint_id",
    "reentrant_url",
    "is_load_balanced",
    "name",
    "module",
)
entries = st.dictionaries(st.sampled_from(fields), json_values, max_size=5)
manifests = st.fixed_dictionaries(
    {},
    optional={
        "function_registry": st.one_of(json_values, st.dictionaries(words, words)),
        "resources": st.one_of(json_values, st.dictionaries(words, st.one_of(entries, json_values), max_size=3)),
        "resources_endpoints": st.one_of(json_values, st.dictionaries(words, words)),
    },
)


@given(manifests)
def test_whatever_a_manifest_holds_there_is_a_route_or_a_reason(manifest: dict[str, Any]) -> None:
    for name in ("f", "m.f"):
        route = decide(FunctionId(name), OWN, manifest, RULES)
        assert isinstance(route, Local | Unresolved) or route.socket.startswith("/tmp/s/") or route.address is not None
