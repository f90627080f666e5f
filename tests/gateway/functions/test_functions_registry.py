"""What is served under which name; functions that come, change, go, and return after a restart."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from external_fixtures import Bench, Settings, TinyDatabase, WebFunction, answer, echo, play, python, refused, until
from test_functions_commands import STDIO_ECHO

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.sqlite.database import Database
from flashmesh.executions.store import StoreUnavailable
from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import AmbiguousFunction, FunctionNotFound, ValidationError
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId
from flashmesh.project.model import FunctionSpec, MethodSpec, ResourceSpec


def resource(name: str, *functions: str, declared: str | None = None, **config: Any) -> ResourceSpec:
    found = []
    for id in functions:
        module, _, qualname = id.rpartition(".")
        methods = ()
        if qualname[0].isupper():
            methods = (MethodSpec(name="inc", line=1), MethodSpec(name="get", line=2))
        found.append(
            FunctionSpec(
                id=FunctionId(id), name=qualname, module=module, file=f"{module}.py", line=1, qualname=qualname,
                kind="class" if methods else "function", methods=methods,
            )
        )  # fmt: skip
    return ResourceSpec(
        name=EndpointName(name),
        file=f"{name}.py",
        variable=None,
        config=ResourceConfig(resource_type="LiveServerless", name=declared, **config),
        functions=tuple(found),
    )


PROJECT = (
    resource("jobs", "jobs.echo", "jobs.Counter", declared="live-jobs", workers_max=3, max_concurrency=2),
    resource("other", "pkg.other.echo", "pkg.other.only", endpoint_id="abc123", execution_timeout_ms=900_000),
)


def test_names_are_ids_bare_names_resources_declared_names_and_endpoint_ids() -> None:
    async def scenario(bench: Bench) -> None:
        registry = bench.registry
        version = registry.version
        registry.serve_project(PROJECT)
        assert registry.version > version
        assert registry.function("jobs.echo").endpoint == "jobs"
        assert registry.function("only").function == "pkg.other.only"
        assert registry.function("Counter.inc").function == registry.function("inc").function == "jobs.Counter.inc"
        with pytest.raises(AmbiguousFunction) as refusal:
            registry.function("echo")
        assert "jobs.echo" in str(refusal.value)
        assert "pkg.other.echo" in str(refusal.value)
        with pytest.raises(FunctionNotFound) as missing:
            registry.function("jobs.ecko")
        assert "Did you mean jobs.echo?" in str(missing.value)
        names = [callee.function for callee in registry.endpoint("jobs")]
        assert names == ["jobs.Counter.get", "jobs.Counter.inc", "jobs.echo"]
        assert registry.endpoint("live-jobs") == registry.endpoint("jobs")
        assert registry.endpoint("abc123") == registry.endpoint("other")
        assert [callee.function for callee in registry.endpoint("only")] == ["pkg.other.only"]
        assert registry.function("only").max_wait_ms == 900_000
        assert registry.function("jobs.echo").max_wait_ms == 300_000
        assert len(registry.functions()) == 5
        described = registry.describe(registry.function("jobs.echo"))
        assert (described["concurrency"], described["executionMode"]) == (6, "WARM")
        msgspec.json.encode([registry.describe(callee) for callee in registry.functions()])

    play(scenario)


def test_a_posted_function_may_not_take_a_name_that_is_served() -> None:
    async def scenario(bench: Bench) -> None:
        bench.registry.serve_project(PROJECT)
        for name in ("jobs", "jobs.echo", "only", "live-jobs"):
            error = await refused(bench.create(name, endpointUrl="http://127.0.0.1:1"))
            assert (error.code, error.status) == ("FUNCTION_EXISTS", 409)
        await bench.create("mine", endpointUrl="http://127.0.0.1:1")
        assert (await refused(bench.create("mine", endpointUrl="http://127.0.0.1:1"))).status == 409
        assert bench.registry.function("mine").external
        assert bench.registry.endpoint("mine") == (bench.registry.function("mine"),)

    play(scenario)


def test_of_two_registrations_at_once_one_wins_and_a_call_reaches_it(tmp_path: Path) -> None:
    database = TinyDatabase(tmp_path / "db")

    async def scenario(bench: Bench) -> None:
        async with WebFunction(echo) as one, WebFunction(echo) as two:
            made = await asyncio.gather(
                bench.create(endpointUrl=one.url), bench.create(endpointUrl=two.url), return_exceptions=True
            )
            winners = [found for found in made if isinstance(found, dict)]
            assert len(winners) == 1
            assert [getattr(found, "status", 201) for found in made].count(409) == 1
            assert await bench.call("f", 5).output() == 5
            assert len(database.read("SELECT * FROM functions_posted")) == 1
            assert bench.registry.describe(bench.registry.function("f"))["endpointUrl"] == winners[0]["endpointUrl"]

    play(scenario, database=database)


def test_a_function_is_not_served_before_it_is_durable_nor_when_it_cannot_be(tmp_path: Path) -> None:
    database = TinyDatabase(tmp_path / "db")

    async def scenario(bench: Bench) -> None:
        database.held = []
        making = asyncio.ensure_future(bench.create(endpointUrl="http://127.0.0.1:1"))
        await until(lambda: database.held)
        with pytest.raises(FunctionNotFound):
            bench.registry.function("f")
        assert not making.done()
        (commit,), database.held = database.held, None
        commit()
        await making
        bench.registry.function("f")
        database.broken = StoreUnavailable("the disk is full")
        error = await refused(bench.create("g", endpointUrl="http://127.0.0.1:1"))
        assert error.status == 503
        with pytest.raises(FunctionNotFound):
            bench.registry.function("g")
        assert (await refused(bench.registry.delete("f"))).status == 503
        assert (await refused(bench.registry.patch("f", b'{"concurrency": 9}'))).status == 503
        assert bench.registry.describe(bench.registry.function("f"))["concurrency"] == 4
        database.broken = None
        await bench.create("g", endpointUrl="http://127.0.0.1:1")
        await bench.registry.delete("f")

    play(scenario, database=database)


def test_posted_functions_are_served_again_after_a_restart_as_they_were_last(tmp_path: Path) -> None:
    async def restarted(scenario: Any) -> None:
        bench = Bench(database=TinyDatabase(tmp_path / "db"))
        bench.registry.serve_project(PROJECT)
        await bench.registry.restore()
        try:
            await scenario(bench)
        finally:
            await bench.close()

    async def run() -> None:
        async with WebFunction(echo) as function:

            async def first(bench: Bench) -> None:
                await bench.create("kept", endpointUrl=function.url, maxRetries=1)
                await bench.create("cmd", command=python(STDIO_ECHO), runtimeMode="STDIO", env={"A": "b"})
                await bench.create("gone", endpointUrl=function.url)
                await bench.registry.patch("kept", b'{"timeoutMs": 1234}')
                await bench.registry.delete("gone")

            async def second(bench: Bench) -> None:
                assert await bench.call("kept", 1).output() == 1
                assert await bench.call("cmd", 2).output() == 2
                shown = bench.registry.describe(bench.registry.function("kept"))
                assert (shown["timeoutMs"], shown["maxRetries"]) == (1234, 1)
                with pytest.raises(FunctionNotFound):
                    bench.registry.function("gone")

            async def third(bench: Bench) -> None:
                assert not [line for line in bench.events if line[0] == "function_not_served"]

            await restarted(first)
            await restarted(second)
            await restarted(third)
            bench = Bench(database=TinyDatabase(tmp_path / "db"), settings=Settings(allow_commands=False))
            await bench.registry.restore()
            assert [event for event, _ in bench.events] == ["function_not_served"]
            assert [callee.function for callee in bench.registry.functions()] == ["kept"]
            await bench.close()

    asyncio.run(run())


def test_a_project_hides_a_posted_function_of_its_name() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create("jobs", endpointUrl="http://127.0.0.1:1")
        bench.registry.serve_project(PROJECT)
        assert not bench.registry.function("jobs.echo").external
        assert ("function_hidden", {"function": "jobs"}) in bench.events

    play(scenario)


def test_only_what_may_change_can_be_patched() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(endpointUrl="http://127.0.0.1:1")
        body = b'{"concurrency": 7, "timeoutMs": 60000, "maxRetries": 0}'
        changed = await bench.registry.patch("f", body)
        assert (changed["concurrency"], changed["timeoutMs"], changed["maxRetries"]) == (7, 60_000, 0)
        assert bench.dispatcher.plan(EndpointName("f")).execution_timeout_ms == 60_000
        assert bench.registry.function("f").wait_ms == 60_000
        for wrong, field in ((b'{"queueSize": 5}', "queueSize"), (b'{"concurrency": 0}', "concurrency")):
            with pytest.raises(ValidationError) as refusal:
                await bench.registry.patch("f", wrong)
            assert refusal.value.field == field
        with pytest.raises(FunctionNotFound):
            await bench.registry.patch("nobody", b"{}")

    play(scenario)


def test_a_projects_mode_and_workers_can_be_patched_and_are_remembered(tmp_path: Path) -> None:
    applied: list[ResourceSpec] = []

    async def amend(changed: ResourceSpec) -> None:
        applied.append(changed)

    database = TinyDatabase(tmp_path / "db")

    async def scenario(bench: Bench) -> None:
        registry = bench.registry
        registry.serve_project(PROJECT)
        shown = await registry.patch("jobs.echo", b'{"executionMode": "REMOTE", "workersMax": 5}')
        assert (shown["executionMode"], shown["workersMax"]) == ("JOB", 5)
        await registry.set_replicas("jobs.echo", 2)
        assert applied[-1].config.mode == "JOB"
        assert applied[-1].config.workers_min == 2
        assert (await registry.replicas("jobs.echo"))["desiredReplicas"] == 2
        with pytest.raises(ValidationError):
            await registry.patch("jobs.echo", b'{"mode": "EXTERNAL"}')
        with pytest.raises(ValidationError):
            await registry.patch("jobs.echo", b'{"workersMin": 9}')
        with pytest.raises(ValidationError):
            await registry.delete("jobs.echo")
        again = {found.name: found for found in registry.amended(PROJECT)}
        assert again[EndpointName("jobs")] == applied[-1]
        assert again[EndpointName("other")] == PROJECT[1]

    play(scenario, database=database, amend_project=amend)


def test_what_has_no_processes_has_no_replicas() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(endpointUrl="http://127.0.0.1:1")
        with pytest.raises(ValidationError):
            await bench.registry.set_replicas("f", 2)
        assert (await bench.registry.replicas("f"))["readyReplicas"] == 1

    play(scenario)


def test_removed_functions_leave_nothing_in_the_dispatcher() -> None:
    async def scenario(bench: Bench) -> None:
        async with WebFunction(echo) as function:
            for _ in range(3):
                await bench.create(endpointUrl=function.url)
                assert await bench.call("f", 1).output() == 1
                await bench.registry.delete("f")
                await until(lambda: EndpointName("f") not in bench.dispatcher._lanes)

    play(scenario)


def test_a_removed_functions_running_call_is_not_tried_again() -> None:
    async def scenario(bench: Bench) -> None:
        go = asyncio.Event()

        async def busy(asked: Any, _: Any) -> bytes:
            await go.wait()
            return answer(b"", status="503 Service Unavailable")

        async with WebFunction(busy) as function:
            await bench.create(endpointUrl=function.url)
            call = bench.call(kind="async")
            await until(lambda: function.asked)
            await bench.registry.delete("f")
            go.set()
            assert (await call.error())[0] == "EXTERNAL_BUSY"

    play(scenario)


def test_other_endpoints_workers_are_the_local_targets() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(endpointUrl="http://127.0.0.1:1")
        source = bench.dispatcher.source
        for endpoint in (EndpointName("f"), EndpointName("jobs")):
            source.ensure(endpoint)
            source.scale(endpoint, 2)
            source.cancel(endpoint, ExecutionId("x"))
        assert bench.local.asked == [("ensure", "jobs"), ("scale", "jobs"), ("cancel", "jobs")]

    play(scenario)


def test_closing_ends_what_runs() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.create(command=python(STDIO_ECHO), runtimeMode="STDIO")
        call = bench.call("f", "hang")
        await call.started.wait()
        await bench.registry.close()
        assert bench.endpoint()["workers"] == 0

    play(scenario)


def test_the_servers_own_database_keeps_them(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        for name in ("one", "two"):
            database = Database(tmp_path / "server.db", loop=loop)
            bench = Bench(database=database)  # type: ignore[arg-type]
            await bench.registry.restore()
            await bench.create(name, endpointUrl="http://127.0.0.1:1")
            await bench.close()
        database = Database(tmp_path / "server.db", loop=loop)
        bench = Bench(database=database)  # type: ignore[arg-type]
        await bench.registry.restore()
        assert [callee.function for callee in bench.registry.functions()] == ["one", "two"]
        await bench.registry.delete("one")
        assert database.read("SELECT name FROM functions_posted") == [("two",)]
        await bench.close()

    asyncio.run(run())


def test_calls_accepted_before_a_restart_run_on_the_functions_served_again(tmp_path: Path) -> None:
    store = MemoryStore()

    async def run() -> None:
        async def hold(asked: Any, _: Any) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

        async with WebFunction(hold) as function:
            before = Bench(database=TinyDatabase(tmp_path / "db"), store=store)
            await before.create("web", endpointUrl=function.url, concurrency=1)
            await before.create("cmd", command=python(STDIO_ECHO), runtimeMode="STDIO")
            running, waiting = before.call("web", 1, kind="async"), before.call("web", 2, kind="async")
            await until(lambda: function.asked)
            port = function.port
        unfinished = store.unfinished()
        assert [str(execution.id) for execution in unfinished] == [running.execution, waiting.execution]

        async with WebFunction(echo, port=port) as function:
            after = Bench(database=TinyDatabase(tmp_path / "db"), store=store)
            await after.registry.restore()
            after.dispatcher.restore(unfinished)
            await until(lambda: not store.unfinished())
            assert [execution.result for execution in unfinished] == [b"1", b"2"]
            assert [execution.attempt for execution in unfinished] == [2, 1]
            assert await after.call("cmd", 3).output() == 3
            await after.close()
        await before.close()

    asyncio.run(run())
