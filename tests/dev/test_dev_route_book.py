from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.dev.server import options
from flashmesh.dev.server.requests import body_media, wanted_media
from flashmesh.dev.server.route_book import (
    CallMatch,
    ChoiceMatch,
    HttpMatch,
    HttpRoute,
    LookMatch,
    NoRoute,
    QueueRoute,
    RouteBook,
    Unavailable,
    WrongMethod,
    path_pattern,
)
from flashmesh.functions.errors import FlashmeshError, SettingsError
from flashmesh.worker.lb.packages import explain_missing, import_name


def book() -> RouteBook:
    made = RouteBook()
    made.add_queue(QueueRoute(prefix="/my-worker", function="my-worker.f", resource="my_worker", file="my-worker.py"))
    for name in ("inc", "dec"):
        made.add_queue(QueueRoute(prefix=f"/a/b/{name}", function=f"a.b.C.{name}", resource="a_b", file="a/b.py"))
    made.add_http(HttpRoute(method="GET", path="/api/items/{id}", function="api.get", resource="api", file="api.py"))
    made.add_http(HttpRoute(method="POST", path="/api/items/{id}", function="api.add", resource="api", file="api.py"))
    made.add_http(HttpRoute(method="GET", path="/api/items/new", function="api.new", resource="api", file="api.py"))
    made.add_unavailable(Unavailable(prefix="/bad", file="bad.py", line=1, reason="r"))
    return made


def found(method: str, path: str) -> Any:
    return book().match(method, path)


def test_each_address_means_one_thing() -> None:
    call = found("POST", "/my-worker/run")
    assert isinstance(call, CallMatch)
    assert (call.route.function, call.verb) == ("my-worker.f", "run")
    assert found("GET", "/my-worker/status/17") == LookMatch("status", "17")
    assert found("POST", "/a/b/cancel/17") == LookMatch("cancel", "17")
    assert found("GET", "/a/b/inc/stream/17") == LookMatch("stream", "17")
    assert found("GET", "/bad/run") == found("POST", "/bad") == book().unavailable[0]


def test_an_exact_http_path_goes_before_a_pattern() -> None:
    new, item = found("GET", "/api/items/new"), found("HEAD", "/api/items/7")
    assert isinstance(new, HttpMatch)
    assert isinstance(item, HttpMatch)
    assert (new.route.function, item.route.function) == ("api.new", "api.get")


def test_a_files_own_address_leaves_the_choice_to_the_body() -> None:
    choice = found("POST", "/a/b/run_sync")
    assert isinstance(choice, ChoiceMatch)
    assert [route.name for route in choice.routes] == ["inc", "dec"]
    assert found("POST", "/a/b/mul/run_sync").wanted == "mul"


def test_a_wrong_method_says_which_are_right() -> None:
    assert found("DELETE", "/api/items/7") == WrongMethod(("GET", "POST", "HEAD", "OPTIONS"))
    assert found("GET", "/my-worker/runsync") == WrongMethod(("POST", "OPTIONS"))


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/my_worker/run", "POST /my-worker/run"),
        ("/api/item/new", "GET /api/items/new"),
        ("/doc", "GET /docs"),
        ("/zzzzzzzzzzzz", None),
    ],
)
def test_the_nearest_route_is_named(path: str, nearest: str | None) -> None:
    assert found("GET", path) == NoRoute(nearest)


@given(st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "BREW"]), st.text(max_size=40))
def test_any_path_is_answered(method: str, text: str) -> None:
    assert book().match(method, "/" + text) is not None


@given(st.text(alphabet=st.characters(exclude_characters="{}/"), min_size=1, max_size=10))
def test_a_path_parameter_takes_one_segment_and_a_path_all(text: str) -> None:
    one, rest = path_pattern("/x/{a}/y"), path_pattern("/x/{a:path}")
    assert one.fullmatch(f"/x/{text}/y") or "\n" in text
    assert not one.fullmatch(f"/x/{text}/z/y")
    assert rest.fullmatch(f"/x/{text}/z/y") or "\n" in text


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("application/x-msgpack", "application/x-msgpack"),
        ("application/json;q=0.5, application/octet-stream", "application/octet-stream"),
        ("text/event-stream", "text/event-stream"),
        ("application/x-msgpack;q=nonsense", "application/json"),
    ],
)
def test_the_form_the_client_likes_best(accept: str | None, media: str) -> None:
    assert wanted_media(accept) == media


@given(st.text(max_size=60))
def test_any_header_is_survived(text: str) -> None:
    wanted_media(text)
    try:
        body_media(text)
    except FlashmeshError as error:
        assert error.status == 415


def test_options_come_from_the_environment() -> None:
    loaded = options.load({"FLASH_DEV_OPTIONS": '{"allow_origin": ["http://a"], "inline": true, "newer": 1}'})
    assert loaded.allow_origin == ("http://a",)
    assert loaded.inline
    assert options.load({"FLASH_MAX_BODY_BYTES": "10"}).max_body_bytes == 10


@pytest.mark.parametrize(
    "environment", [{"FLASH_DEV_OPTIONS": "{"}, {"FLASH_DEV_OPTIONS": "[]"}, {"FLASH_MAX_BODY_BYTES": "64M"}]
)
def test_bad_options_name_the_variable(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(environment))):
        options.load(environment)


def test_a_missing_package_is_recognised_by_the_name_it_is_imported_under() -> None:
    error = ModuleNotFoundError("No module named 'cv2'", name="cv2.data")
    explained = explain_missing(error, ["numpy", "opencv-python>=4.9"])
    assert explained is not None
    assert "uv pip install 'opencv-python>=4.9'" in str(explained)
    assert explain_missing(error, ["numpy"]) is None
    assert explain_missing(ValueError(), ["numpy"]) is None
    assert import_name("scikit-learn[extra] >= 1") == "sklearn"
