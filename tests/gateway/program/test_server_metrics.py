"""What /metrics says, read with Prometheus' own parser."""

import math
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.states import Event, IllegalTransition, Status
from flashmesh.gateway.metrics import BUCKETS_S, MOST_FUNCTIONS, Histogram, Metrics, Sample
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId


def execution(function: str = "m.f", status: Status = Status.SUCCESS, **fields: object) -> Execution:
    made = Execution(ExecutionId("1"), FunctionId(function), EndpointName("m"), "sync", 100.0)
    made.status = status
    for name, value in {"started_at": 100.0, **fields}.items():
        setattr(made, name, value)
    return made


def read(metrics: Metrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by sample name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of(page: dict[str, dict[tuple[tuple[str, str], ...], float]], name: str, function: str = "m.f") -> float:
    return page[name][(("function", function),)]


def test_an_ended_execution_is_counted_once_with_its_times_in_seconds() -> None:
    metrics = Metrics()
    metrics.ended(execution(run_us=2_000_000, queue_us=500, cold_us=1_500))
    page = read(metrics)
    assert of(page, "function_enqueue_total") == of(page, "function_dispatch_total") == 1
    assert of(page, "function_success_total") == of(page, "function_cold_start_total") == 1
    assert of(page, "function_warm_start_total") == of(page, "function_error_total") == 0
    assert of(page, "function_latency_seconds_sum") == 2.0
    assert of(page, "function_queue_wait_seconds_sum") == 0.0005
    assert math.isclose(of(page, "function_e2e_latency_seconds_sum"), 2.002)
    assert math.isclose(of(page, "function_init_duration_seconds_sum"), 0.0015)
    assert page["function_latency_seconds_bucket"][(("function", "m.f"), ("le", "1"))] == 0
    assert page["function_latency_seconds_bucket"][(("function", "m.f"), ("le", "2.5"))] == 1


def test_what_waits_and_runs_counts_as_accepted() -> None:
    live = [execution(status=Status.QUEUED), execution(status=Status.QUEUED), execution(status=Status.RUNNING)]
    page = read(Metrics(lambda: live))
    assert of(page, "function_enqueue_total") == 3
    assert of(page, "function_dispatch_total") == 1
    assert of(page, "function_queue_depth") == 2
    assert of(page, "function_in_flight") == 1


def test_outcomes_retries_and_refusals_have_counters_of_their_own() -> None:
    metrics = Metrics()
    for status in (Status.ERROR, Status.TIMEOUT, Status.CANCELLED):
        metrics.ended(execution(status=status, attempt=3))
    metrics.ended(execution(status=Status.CANCELLED, started_at=None))
    metrics.rejected(FunctionId("m.f"))
    page = read(metrics)
    assert of(page, "function_error_total") == of(page, "function_timeout_total") == 1
    assert of(page, "function_cancelled_total") == 2
    assert of(page, "function_retry_total") == 6
    assert of(page, "function_dispatch_total") == 9
    assert of(page, "function_latency_seconds_count") == 3  # the fourth never ran
    assert of(page, "function_queue_wait_seconds_count") == 4
    assert of(page, "function_queue_rejected_total") == 1


def test_functions_beyond_the_bound_are_counted_together() -> None:
    metrics = Metrics(lambda: [execution("m.late", Status.QUEUED)])
    for number in range(MOST_FUNCTIONS + 5):
        metrics.ended(execution(f"m.f{number}"))
    page = read(metrics)
    assert len(page["function_success_total"]) == MOST_FUNCTIONS + 1
    assert of(page, "function_success_total", "other") == 5
    assert of(page, "function_queue_depth", "other") == 1


def test_others_add_samples_and_histograms() -> None:
    metrics = Metrics()
    commits = Histogram()
    commits.observe(1_000_000)

    def link() -> Iterable[Sample]:
        yield "flash_links", "gauge", "Open links.", {"role": "worker"}, 4
        yield "flash_links", "gauge", "Open links.", {"role": 'a"b\\c\nd'}, 1

    metrics.add_source(link)
    metrics.add_histogram("flash_store_commit_seconds", "Commits.", commits)
    page = read(metrics)
    assert page["flash_links"] == {(("role", "worker"),): 4, (("role", 'a"b\\c\nd'),): 1}
    assert page["flash_store_commit_seconds_count"][()] == 1
    assert page["flash_store_commit_seconds_sum"][()] == 1


def test_the_process_tells_what_prometheus_clients_tell() -> None:
    page = read(Metrics())
    assert page["process_resident_memory_bytes"][()] > 1_000_000
    assert page["process_open_fds"][()] > 2
    assert page["process_cpu_seconds_total"][()] > 0
    ((labels, value),) = page["flash_build_info"].items()
    assert value == 1
    assert [name for name, _ in labels] == ["python", "version"]


@given(st.lists(st.integers(0, 10**11), max_size=50))
def test_buckets_count_every_observation_at_or_below_their_bound(values: list[int]) -> None:
    metrics = Metrics()
    for value in values:
        metrics.ended(execution(run_us=value))
    if not values:
        return
    page = read(metrics)["function_latency_seconds_bucket"]
    for bound in BUCKETS_S:
        below = sum(value <= round(bound * 1e6) for value in values)
        assert page[(("function", "m.f"), ("le", f"{bound:g}"))] == below
    assert page[(("function", "m.f"), ("le", "+Inf"))] == len(values)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["begin", "requeue", "succeed", "cancel"])), max_size=30))
def test_no_counter_ever_falls_whatever_becomes_of_calls(events: list[tuple[int, str]]) -> None:
    """A counter that falls is taken for one that began anew, and what it had is counted twice."""
    live = {number: execution(status=Status.QUEUED, started_at=None) for number in range(3)}
    metrics = Metrics(lambda: live.values())
    begun = 0
    before: dict[str, float] = {}
    for number, event in events:
        one = live.get(number)
        if one is None:
            continue
        try:
            if event == "begin":
                one.begin(one.attempt, at=1.0, worker="w", build="b")
                begun += 1
            elif event == "requeue":
                one.wait_again(one.attempt)
            else:
                one.end(one.attempt, Outcome(event=Event.SUCCEED if event == "succeed" else Event.CANCEL), at=2.0)
        except IllegalTransition:
            continue
        if one.ended:
            del live[number]
            metrics.ended(one)
        page = read(metrics)
        now = {name: of(page, name) for name in page if name.startswith("function_") and name.endswith("_total")}
        assert all(value >= before.get(name, 0) for name, value in now.items()), (before, now)
        assert (now["function_enqueue_total"], now["function_dispatch_total"]) == (3, begun)
        before = now
