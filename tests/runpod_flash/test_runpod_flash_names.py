"""`import runpod_flash`: Flash's names are ours, and its `.env` behaviour too."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flashmesh
import runpod_flash

FLASH_1_21 = [
    "CPU_DATACENTERS",
    "CpuInstanceType",
    "CpuLiveLoadBalancer",
    "CpuLiveServerless",
    "CpuLoadBalancerSlsResource",
    "CpuServerlessEndpoint",
    "CudaVersion",
    "DEFAULT_WORKERS_MAX",
    "DEFAULT_WORKERS_MIN",
    "DataCenter",
    "Endpoint",
    "EndpointJob",
    "FlashApp",
    "GpuGroup",
    "GpuType",
    "LiveLoadBalancer",
    "LiveServerless",
    "LoadBalancerSlsResource",
    "NetworkVolume",
    "PodTemplate",
    "ResourceManager",
    "ServerlessEndpoint",
    "ServerlessScalerType",
    "ServerlessType",
    "remote",
]


def test_flash_s_public_names_are_the_same_objects_under_both_names() -> None:
    assert sorted(runpod_flash.__all__) == sorted(FLASH_1_21)
    for name in FLASH_1_21:
        assert getattr(runpod_flash, name) is getattr(flashmesh, name), name
    assert (runpod_flash.DEFAULT_WORKERS_MIN, runpod_flash.DEFAULT_WORKERS_MAX) == (0, 1)
    assert set(FLASH_1_21) <= set(dir(runpod_flash))


def test_what_flash_never_had_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = runpod_flash.worker_start


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("runpod_flash.client", "remote"),
        ("runpod_flash.endpoint", "Endpoint EndpointJob"),
        ("runpod_flash.core.exceptions", "RunpodAPIKeyError"),
        ("runpod_flash.core.resources.app", "FlashApp"),
        ("runpod_flash.core.resources.constants", "DEFAULT_WORKERS_MAX DEFAULT_WORKERS_MIN"),
        ("runpod_flash.core.resources.cpu", "CpuInstanceType"),
        ("runpod_flash.core.resources.datacenter", "CPU_DATACENTERS DataCenter"),
        ("runpod_flash.core.resources.gpu", "GpuGroup GpuType"),
        (
            "runpod_flash.core.resources.live_serverless",
            "CpuLiveLoadBalancer CpuLiveServerless LiveLoadBalancer LiveServerless",
        ),
        (
            "runpod_flash.core.resources.load_balancer_sls_resource",
            "CpuLoadBalancerSlsResource LoadBalancerSlsResource",
        ),
        ("runpod_flash.core.resources.network_volume", "NetworkVolume"),
        ("runpod_flash.core.resources.resource_manager", "ResourceManager"),
        (
            "runpod_flash.core.resources.serverless",
            "CudaVersion ServerlessEndpoint ServerlessResource ServerlessScalerType ServerlessType",
        ),
        ("runpod_flash.core.resources.serverless_cpu", "CpuServerlessEndpoint"),
        ("runpod_flash.core.resources.template", "KeyValuePair PodTemplate"),
        ("runpod_flash.core.resources", "BaseResource DeployableResource ServerlessResource LiveServerless GpuGroup"),
    ],
)
def test_paths_that_flash_projects_import_from_exist(module: str, names: str) -> None:
    imported = importlib.import_module(module)
    for name in names.split():
        found = getattr(imported, name)
        assert found is getattr(flashmesh, name, found)
        assert name in imported.__all__


def run(code: str, *, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLASHMESH_TEST")}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=True
    )


def test_importing_it_reads_the_project_s_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLASHMESH_TEST_KEY=from the file\n")
    (tmp_path / "sub").mkdir()
    code = "import os, runpod_flash; print(os.environ['FLASHMESH_TEST_KEY'])"
    assert run(code, cwd=tmp_path / "sub").stdout.strip() == "from the file"


def test_without_an_env_file_nothing_is_imported_for_it(tmp_path: Path) -> None:
    assert run("import sys, runpod_flash; print('dotenv' in sys.modules)", cwd=tmp_path).stdout.strip() == "False"


def test_no_name_warns_of_deprecation(tmp_path: Path) -> None:
    """Flash warns at every import; here these names are not going away."""
    code = f"import warnings; warnings.simplefilter('error')\nfrom runpod_flash import {', '.join(FLASH_1_21)}"
    assert run(code, cwd=tmp_path).stderr == ""


def test_a_folder_mixed_with_the_other_distribution_s_says_how_to_repair_it(tmp_path: Path) -> None:
    """Installing both leaves files of both in one folder."""
    package = tmp_path / "runpod_flash"
    (package / "stubs").mkdir(parents=True)
    (package / "stubs" / "registry.py").touch()
    (package / "__init__.py").write_text(Path(runpod_flash.__file__).read_text())
    warned = run("import runpod_flash", cwd=tmp_path, path=tmp_path).stderr
    assert "pip uninstall -y runpod-flash" in warned
    assert "pip install --force-reinstall --no-deps flashmesh" in warned


def test_a_flash_project_s_file_declares_the_same_here(tmp_path: Path) -> None:
    """The smallest worker and Flash's own data-centre example, as written."""
    (tmp_path / "gpu_worker.py").write_text(
        """
from runpod_flash import DataCenter, Endpoint, GpuGroup, LiveServerless, remote

gpu_config = LiveServerless(name="gpu_worker", gpus=[GpuGroup.ANY])

@remote(gpu_config)
async def process(input_data: dict) -> dict:
    return {"result": "processed", "input": input_data}

@Endpoint(name="us-worker", gpu=GpuGroup.ANY, datacenter=[DataCenter.US_GA_2, DataCenter.EU_RO_1])
async def us(data: dict) -> dict:
    return data
"""
    )
    code = (
        "import gpu_worker; from flashmesh.functions.declarations import declarations_in;"
        "print([(d.id, d.config.name) for d in declarations_in(vars(gpu_worker))])"
    )
    printed = run(code, cwd=tmp_path).stdout.strip()
    assert printed == "[('gpu_worker.process', 'gpu_worker'), ('gpu_worker.us', 'us-worker')]"


def test_the_former_name_of_flash_is_the_same_module() -> None:
    """Projects from before the renaming say `tetra_rp`, and paths below it."""
    program = (
        "import runpod_flash, tetra_rp\n"
        "from tetra_rp import LiveServerless, remote\n"
        "from tetra_rp.core.resources import GpuGroup\n"
        "assert tetra_rp is runpod_flash and GpuGroup is runpod_flash.GpuGroup\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
