"""The manifest of an environment out of its rows, and which environment a request means."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from state_fixtures import BUILD, OTHER_BUILD, entry

from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.state.records import AppNotFound, EnvironmentNotFound, Served
from flashmesh.gateway.state.scope import OutOfScope, Scope, ScopeAmbiguous, find_scope
from flashmesh.gateway.state.view import by_name, deployed_manifest, registry

NAMES = st.sampled_from(["a", "b", "production", "staging"])
KNOWN = st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=3), max_size=3)


def served(identity: str, name: str, at: float = 1.0, **more: Any) -> Served:
    return Served(identity=identity, name=name, entry=entry(name=identity, **more), source="", recorded_at=at)


def holder(app: str = "", environment: str = "") -> Grant:
    return Grant(name="t", id="1", scope="peer", app=app, environment=environment)


def test_a_partial_deployment_has_resources_of_two_builds() -> None:
    found = deployed_manifest(
        app="shop",
        environment="production",
        build=BUILD,
        common={"version": "1.0", "project_name": "shop"},
        served=[served("gpu", "gpu", build=OTHER_BUILD), served("cpu", "cpu", status="failed", error="no")],
    )
    assert {name: one["build"] for name, one in found["resources"].items()} == {"cpu": BUILD, "gpu": OTHER_BUILD}
    assert found["resources"]["cpu"]["error"] == "no"
    assert found["generated_at"] == "1970-01-01T00:00:01Z"


def test_two_resources_of_one_name_are_told_apart_and_the_newest_has_it() -> None:
    old, new = served("gpu.py|", "gpu", at=1.0), served("gpu.py|big", "gpu", at=2.0)
    assert by_name([old, new]) == by_name([new, old]) == {"gpu": new, "gpu.py|-0a1b2c3d": old}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("xyz"), st.integers(0, 2)), unique_by=lambda one: one[0]))
def test_no_resource_is_left_out_and_the_order_of_rows_does_not_matter(rows: list[tuple[int, str, int]]) -> None:
    made = [served(f"f{number}", name, at=float(at)) for number, name, at in rows]
    named = by_name(made)
    assert sorted(one.identity for one in named.values()) == sorted(one.identity for one in made)
    assert named == by_name(reversed(made))


def test_a_bare_name_is_registered_while_one_function_has_it() -> None:
    functions = [{"name": "run", "id": "a.run"}, {"name": "only", "id": "a.only"}]
    assert registry({"a": {"functions": functions}, "b": {"functions": [{"name": "run", "id": "b.run"}]}}) == {
        "a.run": "a",
        "a.only": "a",
        "b.run": "b",
        "only": "a",
    }


def test_routes_of_load_balanced_resources_are_in_the_manifest() -> None:
    function = {"name": "add", "id": "web.add", "http_method": "POST", "http_path": "/add"}
    one = served("web", "web", is_load_balanced=True, functions=[function])
    found = deployed_manifest(app="a", environment="b", build=None, common={}, served=[one])
    assert found["routes"] == {"web": {"POST /add": "web.add"}}


@pytest.mark.parametrize(
    ("known", "app", "environment", "token", "meant"),
    [
        ({"shop": ["production"]}, None, None, None, ("shop", "production")),
        ({"shop": ["staging"]}, None, None, None, ("shop", "staging")),
        ({"shop": ["a", "production"]}, None, None, None, ("shop", "production")),
        ({"shop": ["a", "b"]}, None, "b", None, ("shop", "b")),
        ({"shop": ["production"], "bank": ["staging"]}, None, None, None, ("shop", "production")),
        ({"shop": ["production"], "bank": ["production"]}, "bank", None, None, ("bank", "production")),
        ({"shop": ["production"], "bank": ["production"]}, None, None, holder("shop"), ("shop", "production")),
        ({"shop": ["production", "s"]}, None, None, holder("shop", "s"), ("shop", "s")),
        ({"shop": ["production", "s"]}, "shop", "s", holder("shop"), ("shop", "s")),
        ({}, None, None, None, EnvironmentNotFound),
        ({"shop": []}, None, None, None, EnvironmentNotFound),
        ({"shop": ["a"]}, "bank", None, None, AppNotFound),
        ({"shop": ["a"]}, "shop", "b", None, EnvironmentNotFound),
        ({"shop": ["a"]}, None, None, holder("bank"), AppNotFound),
        ({"shop": ["a", "b"]}, None, None, None, ScopeAmbiguous),
        ({"shop": ["production"], "bank": ["production"]}, None, None, None, ScopeAmbiguous),
        ({"shop": ["a"], "bank": ["a"]}, "bank", None, holder("shop"), OutOfScope),
        ({"shop": ["a", "b"]}, "shop", "b", holder("shop", "a"), OutOfScope),
    ],
)
def test_a_request_means(known: Any, app: Any, environment: Any, token: Any, meant: Any) -> None:
    if isinstance(meant, tuple):
        assert find_scope(known, app, environment, token) == meant
    else:
        with pytest.raises(meant):
            find_scope(known, app, environment, token)


@given(KNOWN, st.none() | NAMES, st.none() | NAMES, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "staging"]))
def test_what_is_found_exists_is_what_was_said_and_in_the_tokens_scope(
    known: dict[str, list[str]], app: str | None, environment: str | None, only_app: str, only: str
) -> None:
    try:
        found = find_scope(known, app, environment, holder(only_app, only))
    except (AppNotFound, EnvironmentNotFound, OutOfScope, ScopeAmbiguous):
        return
    assert isinstance(found, Scope)
    assert found.environment in known[found.app]
    assert found.app == (app or found.app) == (only_app or found.app)
    assert found.environment == (environment or found.environment) == (only or found.environment)
