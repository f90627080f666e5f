"""Names of several apps and environments on one server: what a request means by one, and who may mean it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from external_fixtures import Bench, play
from test_functions_registry import resource

from flashmesh.functions.errors import AmbiguousFunction, FlashmeshError, FunctionNotFound, ValidationError
from flashmesh.gateway.access.place import where_of
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.api.hot import CallRoutes
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.directory import ANYWHERE, Where
from flashmesh.gateway.functions.names import Names
from flashmesh.gateway.functions.project_functions import Deployed, served_of
from flashmesh.gateway.http import Answer, Request
from flashmesh.kit.ids import BuildId, EndpointName
from flashmesh.queueing.plan import EndpointPlan


def deployed(app: str, environment: str, name: str = "jobs", *functions: str, **options: Any) -> Deployed:
    return Deployed(
        endpoint=EndpointName(f"{name}-{app}-{environment}"),
        app=app,
        environment=environment,
        resource=resource(name, *(functions or (f"{name}.echo",)), **options),
        url=f"http://127.0.0.1/{app}",
    )


def names(*endpoints: Deployed) -> Names:
    return Names(one.served() for one in endpoints)


def test_a_name_that_one_environment_has_needs_no_app_beside_it() -> None:
    """By function, bare name, resource, declared name, endpoint id."""
    found = names(deployed("shop", "staging", declared="live-jobs"), deployed("blog", "production", "posts"))
    endpoint = EndpointName("jobs-shop-staging")
    assert found.function("jobs.echo").endpoint == endpoint
    assert {found.endpoint(name)[0].endpoint for name in ("jobs", "live-jobs", endpoint, "jobs.echo")} == {endpoint}


def test_production_is_meant_before_other_environments() -> None:
    """Unless the request says another, by environment or by app."""
    found = names(deployed("shop", "staging"), deployed("shop", "production"))
    assert found.function("echo").endpoint == "jobs-shop-production"
    assert found.function("echo", Where("shop", "staging")).endpoint == "jobs-shop-staging"
    assert found.endpoint("jobs", Where("", "staging"))[0].endpoint == "jobs-shop-staging"


def test_a_deployment_takes_the_place_of_what_the_server_shows_of_the_same_folder() -> None:
    """A server of a project is deployed to with that project: every name would have two meanings otherwise."""
    folder = [served_of(resource(name, f"{name}.echo"))._replace(app="shop") for name in ("jobs", "other")]
    here = deployed("shop", "production")
    found = Names([*folder, here.served()])
    assert {found.function(name).endpoint for name in ("jobs.echo",)} == {here.endpoint}
    assert found.endpoint("jobs")[0].endpoint == here.endpoint
    assert found.endpoint("other")[0].endpoint == "other"
    assert Names([*folder, deployed("shop", "staging").served()]).endpoint("jobs")[0].endpoint == "jobs"
    with pytest.raises(AmbiguousFunction):
        Names([*folder, deployed("blog", "production").served()]).endpoint("jobs")


def test_two_apps_with_one_name_are_told_with_their_ids() -> None:
    """409 lists what could be meant, and how to say which."""
    found = names(deployed("shop", "production"), deployed("blog", "production"))
    for ask in (found.function, found.endpoint):
        with pytest.raises(AmbiguousFunction) as refusal:
            ask("jobs.echo")
        assert "jobs-shop-production" in str(refusal.value) and "jobs-blog-production" in str(refusal.value)
        assert "?app=" in str(refusal.value)
    assert found.function("jobs.echo", Where("blog")).endpoint == "jobs-blog-production"


def test_an_endpoint_id_needs_no_scope_but_a_token_of_another_app_does_not_reach_it() -> None:
    found = names(deployed("shop", "production"), deployed("blog", "production"))
    id = "jobs-shop-production"
    assert found.endpoint(id, Where("blog"))[0].endpoint == id
    with pytest.raises(FunctionNotFound):
        found.endpoint(id, Where("blog", "", "blog", ""))
    assert not found.visible(EndpointName(id), Where("blog", "", "blog", ""))
    assert found.visible(EndpointName(id), Where("shop", "", "shop", ""))


def test_an_app_that_is_not_served_is_named_in_the_refusal() -> None:
    with pytest.raises(FunctionNotFound, match=r"'nobody'.*not served here"):
        names(deployed("shop", "production")).function("jobs.echo", Where("nobody"))


def test_a_request_means_what_it_says_then_what_its_token_counts_for() -> None:
    """Header before query before token; the token's limit stays."""
    grant = Grant(name="peer", id="1", scope="peer", app="shop", environment="staging", limited=True)
    assert where_of(b"", {}, None) == ANYWHERE
    assert where_of(b"", {}, grant) == Where("shop", "staging", "shop", "staging")
    assert where_of(b"app=a&env=b", {}, None) == Where("a", "b")
    assert where_of(b"app=a", {b"x-flash-app": b"c"}, None) == Where("c")
    assert where_of(b"env=production", {}, grant) == Where("shop", "production", "shop", "staging")


GRANTS = {"of-blog": Grant(name="of-blog", id="1", scope="call", app="blog", limited=True)}


class Told:
    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def __call__(self, answer: Answer) -> None:
        self.answers.append(answer)


def test_one_path_reaches_each_callers_own_function() -> None:
    """The short way remembers paths, and yet two environments answer on the same one."""

    async def scenario(bench: Bench) -> None:
        served = [deployed("shop", "production"), deployed("shop", "staging"), deployed("blog", "production")]
        for one in served:
            bench.registry.serve_environment(one.app, one.environment, [one])
            functions = frozenset(callee.function for callee in one.served().callees)
            bench.dispatcher.declare(
                EndpointPlan(name=one.endpoint, build=BuildId("b"), functions=functions, by_name_only=True)
            )
        routes = CallRoutes(Calls(dispatcher=bench.dispatcher, clock=bench.clock), bench.registry)

        def enqueue(path: bytes, headers: Mapping[bytes, bytes], query: bytes = b"", principal: str = "") -> str:
            handler = routes.find(b"POST", path)
            assert handler is not None
            told = Told()
            sent = {b"content-type": b"application/json", **headers}
            handler(Request(b"POST", path, query, sent, b'{"input": 1}', principal), told)
            (answer,) = told.answers
            if answer.status >= 400:
                return str(answer.status)
            waiting = {one.endpoint for one in served if bench.dispatcher.health(one.endpoint)["jobs"]["inQueue"]}
            for endpoint in waiting:
                bench.dispatcher.purge(endpoint)
            return ",".join(waiting)

        path = b"/v1/functions/jobs.echo:enqueue"
        for one in (served[2],):  # without it, `shop` alone has the name in production
            bench.registry.serve_environment(one.app, one.environment, [])
        assert enqueue(path, {}) == "jobs-shop-production"
        assert enqueue(path, {b"x-flash-environment": b"staging"}) == "jobs-shop-staging"
        assert enqueue(path, {}, b"app=shop&env=staging") == "jobs-shop-staging"
        assert enqueue(path, {b"x-flash-app": b"nobody"}) == "404"
        assert enqueue(path, {}, principal="of-blog") == "404"
        assert enqueue(path, {}, principal="revoked meanwhile") == "404"
        bench.registry.serve_environment("blog", "production", [served[2]])
        assert routes.find(b"POST", path) is None  # ambiguous now: the application says so
        assert enqueue(b"/v2/jobs-shop-staging/run", {}) == "jobs-shop-staging"
        assert enqueue(b"/v2/jobs-shop-staging/run", {}, principal="of-blog") == "404"
        assert enqueue(b"/v2/jobs-blog-production/run", {}, principal="of-blog") == "jobs-blog-production"

    play(scenario, grant=GRANTS.get)


def test_deployed_functions_are_described_with_where_they_are() -> None:
    """Endpoint id, app, environment, resource, and the endpoint's own address."""

    async def scenario(bench: Bench) -> None:
        one = deployed("shop", "staging")
        bench.registry.serve_environment("shop", "staging", [one])
        described = bench.registry.describe(bench.registry.function("jobs.echo"))
        assert (described["name"], described["endpoint"], described["resource"]) == ("jobs.echo", one.endpoint, "jobs")
        assert (described["app"], described["environment"]) == ("shop", "staging")
        assert described["endpointUrl"] == "http://127.0.0.1/shop"
        with pytest.raises(ValidationError, match="flash deploy"):
            await bench.registry.patch("jobs.echo", b'{"executionMode": "JOB"}')
        bench.registry.serve_environment("shop", "staging", [])
        with pytest.raises(FlashmeshError):
            bench.registry.function("jobs.echo")
        await asyncio.sleep(0)

    play(scenario)
