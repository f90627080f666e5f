"""What the session tells of its project, and how a name finds a function."""

import asyncio

import pytest
from dev_fixtures import sample_project
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.dev.session.control import ProjectState, resolve
from flashmesh.functions.errors import AmbiguousFunction, FunctionNotFound
from flashmesh.project.model import Problem

CALLABLES = {
    "gpu.process": "gpu",
    "stages.one.run": "stages_one",
    "stages.two.run": "stages_two",
    "counter.Counter.inc": "counter",
    "counter.Counter.get": "counter",
}
ALIASES = {"declared": "gpu", "stages/one": "stages_one"}


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("gpu.process", ["gpu.process"]),
        ("process", ["gpu.process"]),
        ("gpu", ["gpu.process"]),
        ("declared", ["gpu.process"]),
        ("/stages/one/", ["stages.one.run"]),
        ("run", ["stages.one.run", "stages.two.run"]),
        ("stages_two/run", ["stages.two.run"]),
        ("counter/inc", ["counter.Counter.inc"]),
        ("Counter.get", ["counter.Counter.get"]),
        ("counter", ["counter.Counter.get", "counter.Counter.inc"]),
        ("nothing", []),
    ],
)
def test_a_name_is_an_id_a_resource_a_path_or_a_bare_name_in_that_order(name: str, ids: list[str]) -> None:
    assert resolve(name, CALLABLES, ALIASES) == ids


@given(
    st.dictionaries(st.from_regex(r"[a-c]\.[a-c]\.[a-c]", fullmatch=True), st.sampled_from(["x", "y"])),
    st.text("abc./"),
)
def test_what_is_found_is_always_served_and_sorted(callables: dict[str, str], name: str) -> None:
    found = resolve(name, callables, {})
    assert found == sorted(found)
    assert set(found) <= callables.keys()


def ask(state: ProjectState, name: str) -> dict[str, object]:
    return asyncio.run(state.answer_resolve({"name": name}, lambda *_: None)) or {}


def test_http_functions_are_not_calls_of_workers_and_an_unknown_name_gets_the_nearest() -> None:
    state = ProjectState(sample_project()[0])
    assert ask(state, "process")["function"] == "gpu_worker.process"
    with pytest.raises(FunctionNotFound):
        ask(state, "first_pass")
    with pytest.raises(FunctionNotFound, match=r"Did you mean `gpu_worker\.process`"):
        ask(state, "proces")


def test_an_ambiguous_name_lists_the_ids() -> None:
    state = ProjectState(sample_project()[0])
    state.callables = lambda: CALLABLES  # type: ignore[method-assign]
    with pytest.raises(AmbiguousFunction, match=r"stages\.one\.run, stages\.two\.run"):
        ask(state, "run")


def test_a_name_that_may_be_in_a_broken_file_says_so() -> None:
    broken = Problem(file="broken.py", line=3, reason="invalid syntax", prefix="/broken")
    with pytest.raises(FunctionNotFound, match=r"broken\.py:3: invalid syntax"):
        ask(ProjectState(sample_project(broken)[0]), "anything")


def test_who_follows_the_project_hears_every_state_once_it_is_known() -> None:
    async def main() -> list[str]:
        state = ProjectState(sample_project()[0])
        heard: list[str] = []

        def send(body: dict, more: bool) -> None:
            heard.append(body["resources"]["gpu_worker"]["state"])

        following = asyncio.create_task(state.answer_follow_project({}, send))
        await asyncio.sleep(0)
        state.learn("gpu_worker", {"state": "ready", "functions": []})
        await asyncio.sleep(0)
        state.replace(state.project, forget=frozenset({"gpu_worker"}))
        await asyncio.sleep(0)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return heard

    assert asyncio.run(main()) == ["cold", "ready", "cold"]


def test_waiting_for_an_import_ends_when_it_is_known_or_its_resource_gone() -> None:
    async def main() -> None:
        state = ProjectState(sample_project()[0])
        waits = [asyncio.create_task(state.imported(name)) for name in ("gpu_worker", "counter")]
        await asyncio.sleep(0)
        state.learn("gpu_worker", {"state": "import_failed"})
        await waits[0]
        assert not waits[1].done()
        state.replace(sample_project()[0].__class__(root=state.project.root, name="p", resources=()))
        async with asyncio.timeout(5):
            await waits[1]

    asyncio.run(main())
