"""The scan with our real resource classes and decorators: what they refuse at import, it refuses before."""

from pathlib import Path

import pytest
from project_fixtures import only, write

from flashmesh.project.model import Project
from flashmesh.project.resources import setting_problems
from flashmesh.project.scan import scan


def scanned(root: Path, source: str) -> Project:
    return scan(write(root, {"w.py": "from flashmesh import *\n" + source}), environ={})


@pytest.mark.parametrize(
    ("source", "resource_type", "balanced"),
    [
        ("@remote(LiveServerless(name='x'))", "LiveServerless", False),
        ("@remote(CpuLiveServerless(name='x', instanceIds=[CpuInstanceType.CPU3C_1_2]))", "CpuLiveServerless", False),
        ("@remote(ServerlessEndpoint(name='x', imageName='a/b'))", "ServerlessEndpoint", False),
        ("@remote(LiveLoadBalancer(name='x'), method='post', path='/p')", "LiveLoadBalancer", True),
        ("@remote(CpuLiveLoadBalancer(name='x'), 'POST', '/p')", "CpuLiveLoadBalancer", None),
        ("@Endpoint(name='x', gpu=GpuType.NVIDIA_GEFORCE_RTX_4090, workers=(1, 2))", "Endpoint", False),
        ("@Endpoint(name='x', cpu='cpu3c-1-2', volume=NetworkVolume(name='v'))", "Endpoint", False),
    ],
)
def test_every_kind_of_resource_is_known(
    tmp_path: Path, source: str, resource_type: str, balanced: bool | None
) -> None:
    project = scanned(tmp_path, f"{source}\ndef f(): ...\n")
    if balanced is None:  # method and path are not the second and third parameter
        assert project.problems[0].prefix == "/w"
        return
    resource = only(project)
    assert (resource.config.resource_type, resource.config.name) == (resource_type, "x")
    assert resource.is_load_balanced is balanced
    assert resource.unresolved == ()
    assert resource.functions[0].http_method == ("POST" if balanced else None)


def test_settings_of_every_spelling_reach_the_configuration(tmp_path: Path) -> None:
    config = only(
        scanned(
            tmp_path,
            "VOLUME = NetworkVolume(name='models', size=50)\n"
            "gpu = LiveServerless(name='x', gpus=[GpuGroup.ADA_24, GpuType.NVIDIA_L4], workersMax=3, idle_timeout=5,\n"
            "    executionTimeoutMs=60_000, networkVolume=VOLUME, env={'A': '1'}, template=PodTemplate(\n"
            "    containerDiskInGb=100), datacenter=DataCenter.EU_RO_1, mode='JOB', queue_size=7)\n"
            "@remote(gpu)\ndef f(): ...\n",
        )
    ).config
    assert config.gpus == ("ADA_24", "NVIDIA_L4")
    assert (config.workers_max, config.idle_timeout_s, config.execution_timeout_ms) == (3, 5, 60_000)
    assert (config.volumes[0].name, config.volumes[0].size_gb) == ("models", 50)
    assert (config.env, config.mode, config.queue_size) == ({"A": "1"}, "JOB", 7)
    assert config.template is not None and config.template["containerDiskInGb"] == 100


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("@remote(LiveServerless(name='x'), retris=2)", "did you mean 'retries'"),
        ("@remote(LiveServerless(nam='x'))", "did you mean 'name'"),
        ("@remote(LiveServerless())", "needs a name"),
        ("@remote(LiveServerless(name='x', workersMin=2))", "above workersMax"),
        ("@remote(LiveLoadBalancer(name='x'), method='FETCH', path='/p')", "method must be one of"),
        ("@remote(LiveLoadBalancer(name='x'), method='GET', path='/ping')", "reserved"),
        ("@Endpoint(gpu=GpuGroup.ANY, cpu='cpu3c-1-2')", "exclude each other"),
        ("@Endpoint(name='x', image='a/b')", "call something outside"),
        ("@Endpoint(id='abc')", "call something outside"),
        ("@Endpoint().get('/x')", "routes need a named endpoint"),
        ("@Endpoint(name='x').get('x')", "must start with '/'"),
        ("@remote(LiveServerless(name='x'), retries=-1)", "retries must be"),
    ],
)
def test_what_the_import_would_refuse_is_told_at_once_with_its_line(tmp_path: Path, source: str, reason: str) -> None:
    (problem,) = scanned(tmp_path, f"\n{source}\ndef f(): ...\n").problems
    assert reason in problem.reason
    assert (problem.file, problem.line, problem.prefix) == ("w.py", 3, "/w")


def test_a_decorator_refused_costs_its_function_only(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        "gpu = LiveServerless(name='x')\n@remote(gpu)\ndef good(): ...\n@remote(gpu, retris=1)\ndef bad(): ...\n",
    )
    assert [function.name for function in project.functions] == ["good"]
    assert len(project.problems) == 1


def test_an_only_functions_settings_are_its_endpoints(tmp_path: Path) -> None:
    config = only(
        scanned(
            tmp_path,
            "@remote(LiveServerless(name='x'), retries=2, retry_on=OSError, execution_timeout_ms=500, queue_size=3)\n"
            "def f(): ...\n",
        )
    ).config
    assert (config.retries, config.retry_on) == (2, ("builtins.OSError",))
    assert (config.execution_timeout_ms, config.queue_size) == (500, 3)


def test_limits_and_retries_of_several_functions_stay_their_own(tmp_path: Path) -> None:
    resource = only(
        scanned(
            tmp_path,
            "gpu = LiveServerless(name='x')\n"
            "@remote(gpu, retries=2, execution_timeout_ms=500)\ndef a(): ...\n@remote(gpu)\ndef b(): ...\n",
        )
    )
    assert (resource.config.retries, resource.config.execution_timeout_ms) == (0, 0)
    own = [function.settings(resource.config) for function in resource.functions]
    assert [(settings.retries, settings.execution_timeout_ms) for settings in own] == [(2, 500), (0, 0)]


def test_an_endpoint_takes_the_mode_and_concurrency_that_all_its_functions_ask_for(tmp_path: Path) -> None:
    """They are properties of its processes; where functions differ, the endpoint's own stand and a warning says so."""
    text = "gpu = LiveServerless(name='x')\n@remote(gpu, mode='JOB', max_concurrency=4)\ndef a(): ...\n"
    agreed = scanned(tmp_path / "one", text + "@remote(gpu, mode='JOB', max_concurrency=2)\nasync def b(): ...\n")
    assert (only(agreed).config.mode, only(agreed).config.max_concurrency) == ("JOB", 1)
    assert [problem.reason.partition(" has no effect")[0] for problem in setting_problems(agreed)] == [
        "a: max_concurrency=4",
        "b: max_concurrency=2",
    ]
    alone = scanned(tmp_path / "two", text + "@remote(gpu)\ndef b(): ...\n")
    assert only(alone).config.mode == "WARM"
    assert {problem.severity for problem in setting_problems(alone)} == {"warning"}
    assert "a resource of its own" in setting_problems(alone)[0].reason


def test_the_scan_knows_how_many_requests_a_worker_with_routes_serves(tmp_path: Path) -> None:
    for number, (given, expected) in enumerate((("", 100), (", max_concurrency=1", 1), (", max_concurrency=7", 7))):
        text = f"api = Endpoint(name='x'{given})\n@api.get('/a')\ndef a(): ...\n"
        assert only(scanned(tmp_path / str(number), text)).config.max_concurrency == expected
    text = "lb = CpuLiveLoadBalancer(name='x')\n@remote(lb, method='GET', path='/a')\ndef a(): ...\n"
    assert only(scanned(tmp_path / "lb", text)).config.max_concurrency == 100


def test_an_endpoints_packages_are_its_functions_packages(tmp_path: Path) -> None:
    resource = only(
        scanned(
            tmp_path,
            "@Endpoint(name='x', dependencies=['rich'], system_dependencies=['ffmpeg'])\ndef f(): ...\n",
        )
    )
    assert resource.functions[0].dependencies == ("rich",)
    assert resource.functions[0].system_dependencies == ("ffmpeg",)


def test_a_resource_of_which_too_little_is_known_still_has_its_routes(tmp_path: Path) -> None:
    resource = only(scanned(tmp_path, "gpu = LiveServerless(**settings())\n@remote(gpu)\ndef f(): ...\n"))
    assert resource.unresolved == ("*",)
    assert (resource.name, resource.config.name) == ("w", "gpu")
    other = only(
        scanned(tmp_path, "gpu = ServerlessEndpoint(name='a', imageName=pick())\n@remote(gpu)\ndef f(): ...\n")
    )
    assert other.unresolved == ("*",)
    assert other.config.resource_type == "ServerlessEndpoint"
