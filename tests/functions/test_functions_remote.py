"""`@remote`: what it accepts and what it writes down."""

import asyncio
import warnings
from typing import Any

import pytest
from functions_fixtures import FakeCaller, installed

from flashmesh.functions.declarations import declaration_of
from flashmesh.functions.endpoint import Endpoint
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.remote import remote
from flashmesh.functions.resources import CpuLiveLoadBalancer, LiveServerless

queue = LiveServerless(name="queue", workersMax=3, retries=1)
web = CpuLiveLoadBalancer(name="web")


def plain(x: int) -> int:
    """Doc."""
    return x


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(
        TypeError, match=r"remote\(\) got unknown keyword argument 'dependancies' \(did you mean 'dependencies'\?\)"
    ):
        remote(queue, dependancies=["numpy"])
    with pytest.raises(TypeError, match="arguments 'aaa', 'zzz'"):
        remote(queue, zzz=1, aaa=2)


@pytest.mark.parametrize("given", [plain, None, "queue", LiveServerless])
def test_what_is_no_resource_is_refused_with_an_example(given: Any) -> None:
    with pytest.raises(TypeError, match="takes a resource"):
        remote(given)


def test_a_load_balanced_function_needs_method_and_path() -> None:
    with pytest.raises(DeclarationError, match="both method and path"):
        remote(web)
    with pytest.raises(DeclarationError, match="both method and path"):
        remote(web, method="POST")
    with pytest.raises(DeclarationError, match="method must be one of"):
        remote(web, method="FETCH", path="/x")
    with pytest.raises(DeclarationError, match="start with '/'"):
        remote(web, method="GET", path="x")
    with pytest.raises(DeclarationError, match="reserved"):
        remote(web, method="GET", path="/ping")


def test_a_route_is_written_down_and_its_function_callable() -> None:
    handle = remote(web, method="post", path="/x")(plain)
    declaration = handle.__flash__
    assert (declaration.method, declaration.path) == ("POST", "/x")
    assert declaration.config.is_load_balanced
    assert handle.__remote_config__["is_lb_route_handler"] is True
    assert handle.__is_lb_route_handler__ is True
    assert handle.__wrapped__ is plain
    with installed(FakeCaller()):
        assert asyncio.run(handle(1)) == "answered"


def test_a_route_on_a_queue_is_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="queue-based"):
        handle = remote(queue, method="GET", path="/x")(plain)
    assert handle.__flash__.method is None


def test_what_was_declared_is_on_the_declaration() -> None:
    handle = remote(queue, dependencies=["numpy>=2"], system_dependencies=["ffmpeg"], accelerate_downloads=False)(plain)
    declaration = declaration_of(handle)
    assert declaration is not None
    assert declaration.target is plain
    assert declaration.resource is queue
    assert (declaration.kind, declaration.decorated_by, declaration.local) == ("function", "remote", False)
    assert (declaration.module, declaration.qualname, declaration.id) == (__name__, "plain", f"{__name__}.plain")
    assert (declaration.dependencies, declaration.system_dependencies) == (("numpy>=2",), ("ffmpeg",))
    assert (declaration.is_async, declaration.is_generator, declaration.doc) == (False, False, "Doc.")
    config = declaration.config
    assert (config.dependencies, config.system_dependencies, config.accelerate_downloads) == (
        ("numpy>=2",),
        ("ffmpeg",),
        False,
    )
    assert config is declaration.config
    assert "plain" in repr(declaration)


def test_flash_s_own_stamp_is_there() -> None:
    handle = remote(queue, dependencies=["a"], local=True)(plain)
    assert handle.__remote_config__ == {
        "resource_config": queue,
        "method": None,
        "path": None,
        "dependencies": ["a"],
        "system_dependencies": None,
    }
    assert handle.__flash_local__ is True
    assert handle.__flash__.local


def test_a_function_s_own_settings_win_over_its_resource_s() -> None:
    own = remote(
        queue,
        retries=4,
        retry_on=(TimeoutError, "json.JSONDecodeError", "OSError"),
        mode="POOL",
        queue_size=7,
        max_concurrency=5,
        execution_timeout_ms=1000,
        preload=False,
        gpu_share=True,
    )(plain).__flash__.config
    assert (own.retries, own.retry_on) == (4, ("builtins.TimeoutError", "json.JSONDecodeError", "builtins.OSError"))
    assert (own.mode, own.queue_size, own.max_concurrency) == ("WARM", 7, 5)
    assert (own.execution_timeout_ms, own.preload, own.gpu_share) == (1000, False, True)
    assert remote(queue)(plain).__flash__.config.retries == 1
    assert remote(queue, retries=0)(plain).__flash__.config.retries == 0


@pytest.mark.parametrize(
    "wrong", [{"dependencies": "numpy"}, {"system_dependencies": [""]}, {"retries": -1}, {"mode": "x"}, {"retry_on": 3}]
)
def test_values_that_cannot_be_used_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        remote(queue, **wrong)


def test_an_endpoint_serves_as_a_resource() -> None:
    endpoint = Endpoint(name="e", cpu="cpu3c-1-2")
    assert remote(endpoint)(plain).__flash__.config.cpus == ("cpu3c-1-2",)


@pytest.mark.parametrize("target", [3, "f", staticmethod(plain), property(plain)])
def test_only_functions_and_classes_are_decorated(target: Any) -> None:
    with pytest.raises(TypeError):
        remote(queue)(target)


def test_declaring_twice_is_refused() -> None:
    with pytest.raises(DeclarationError, match="declared already"):
        remote(queue)(remote(queue)(plain))


def test_decorating_the_same_plain_function_for_two_resources_is_fine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = remote(queue)(plain)
        other = remote(LiveServerless(name="other"))(plain)
    assert one.__flash__.resource is not other.__flash__.resource
