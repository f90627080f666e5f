"""Which GPUs a machine has and which a worker gets."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmesh.deploy.local.gpus import Devices, Gpu, NoGpu, choose, detect, fits, lacking, parse_smi
from flashmesh.functions.config import ResourceConfig

SMI = """0, GPU-aaaa, NVIDIA GeForce RTX 4090, 24564
1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559
2, GPU-cccc, NVIDIA L4, 23034
No devices were found
"""
RTX, H100, L4 = parse_smi(SMI)


def config(*gpus: str, count: int = 1, share: bool | None = None) -> ResourceConfig:
    return ResourceConfig(resource_type="LiveServerless", gpus=gpus, gpu_count=count, gpu_share=share)


def chosen(found: Devices | NoGpu) -> list[str]:
    assert isinstance(found, Devices), found
    return [gpu.uuid for gpu in found.gpus]


def fake_smi(folder: Path, body: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def test_cards_are_read_with_their_memory_in_bytes() -> None:
    assert [(gpu.index, gpu.uuid, gpu.memory_bytes) for gpu in (RTX, H100)] == [
        (0, "GPU-aaaa", 24564 * 2**20),
        (1, "GPU-bbbb", 81559 * 2**20),
    ]


def test_a_machine_without_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert detect({}) == ()
    fake_smi(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert detect({}) == ()


def test_only_visible_gpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    fake_smi(tmp_path, f"cat <<'END'\n{SMI}END")
    assert detect({}) == (RTX, H100, L4)
    assert detect({"CUDA_VISIBLE_DEVICES": "2,0"}) == (L4, RTX)
    assert detect({"CUDA_VISIBLE_DEVICES": "GPU-b"}) == (H100,)
    assert detect({"CUDA_VISIBLE_DEVICES": "1,-1,0"}) == (H100,)
    assert detect({"CUDA_VISIBLE_DEVICES": ""}) == ()


class FakeNvml(ModuleType):
    """The driver's library with one card, or (without) a driver that does not start."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, has_driver: bool) -> None:
        super().__init__("pynvml")
        self.has_driver = has_driver
        self.is_open = False

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return b"GPU-dddd"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA L4"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=24 * 10**9)


def test_the_drivers_library_is_asked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml(has_driver=True)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert detect({}) == (Gpu(0, "GPU-dddd", "NVIDIA L4", 24 * 10**9),)
    assert not library.is_open
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(has_driver=False))
    assert detect({}) == ()


@pytest.mark.parametrize(
    ("wanted", "fitting"),
    [
        ("ANY", {RTX, H100, L4}),
        ("ADA_24", {RTX, H100, L4}),
        ("AMPERE_48", {H100}),
        ("ADA_80_PRO", {H100}),
        ("HOPPER_141", set()),
        ("NVIDIA_GEFORCE_RTX_4090", {RTX}),
        ("NVIDIA_H100_80GB_HBM3", {H100}),
        ("NVIDIA_L40", set()),
    ],
)
def test_a_group_means_at_least_its_memory_and_a_type_that_model(wanted: str, fitting: set[Gpu]) -> None:
    assert {gpu for gpu in (RTX, H100, L4) if fits(gpu, wanted)} == fitting


def test_the_smallest_free_gpu_that_fits_is_chosen() -> None:
    assert chosen(choose(config("ADA_24"), (RTX, H100, L4), {})) == ["GPU-cccc"]
    assert chosen(choose(config("ADA_24"), (RTX, H100, L4), {"GPU-cccc": 1})) == ["GPU-aaaa"]
    assert chosen(choose(config("AMPERE_80"), (RTX, H100, L4), {})) == ["GPU-bbbb"]


def test_several_gpus_are_given_together() -> None:
    found = choose(config("ANY", count=2), (RTX, H100, L4), {})
    assert isinstance(found, Devices)
    assert found.cuda_visible_devices == "GPU-cccc,GPU-aaaa"
    refused = choose(config("ANY", count=4), (RTX, H100, L4), {})
    assert isinstance(refused, NoGpu) and not refused.busy and "needs 4" in refused.reason


def test_a_gpu_is_shared_unless_the_resource_says_no() -> None:
    busy = {"GPU-aaaa": 1}
    assert chosen(choose(config("ANY"), (RTX,), busy)) == ["GPU-aaaa"]
    waiting = choose(config("ANY", share=False), (RTX,), busy)
    assert isinstance(waiting, NoGpu) and waiting.busy and waiting.reason == "queued: waiting for GPU"
    assert isinstance(choose(config("ANY"), (RTX,), busy, share=False), NoGpu)


def test_a_gpu_that_does_not_fit_is_better_than_none_and_it_is_said() -> None:
    found = choose(config("HOPPER_141", "BLACKWELL_180"), (RTX,), {})
    assert chosen(found) == ["GPU-aaaa"]
    assert isinstance(found, Devices)
    assert found.note == "no HOPPER_141 or BLACKWELL_180 here: using NVIDIA GeForce RTX 4090"


def test_a_cpu_resource_gets_none() -> None:
    assert isinstance(choose(config(), (RTX,), {}), NoGpu)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([RTX.uuid, H100.uuid, L4.uuid]), st.integers(0, 5)), st.integers(1, 3))
def test_no_gpu_gets_another_worker_while_a_freer_one_fits(in_use: dict[str, int], count: int) -> None:
    gpus = (RTX, H100, L4)
    uuids = chosen(choose(config("ANY", count=count), gpus, in_use))
    assert len(set(uuids)) == count
    others = [in_use.get(gpu.uuid, 0) for gpu in gpus if gpu.uuid not in uuids]
    assert all(in_use.get(uuid, 0) <= other for uuid in uuids for other in others)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (config(), None),
        (config("ANY"), None),
        (config("ADA_24"), None),
        (config("HOPPER_141", "NVIDIA_L4"), None),
        (config("HOPPER_141"), ["HOPPER_141", "NVIDIA H100 80GB HBM3 (86 GB)", "NVIDIA L4 (24 GB)"]),
        (config("ANY", count=4), ["4 x ANY"]),
    ],
)
def test_what_a_machine_lacks_is_told_with_what_it_has(wanted: ResourceConfig, words: list[str] | None) -> None:
    """Whoever deploys sees which cards nearly fit."""
    found = lacking(wanted, (RTX, H100, L4))
    assert (found is None) == (words is None)
    assert all(word in (found or "") for word in words or ())
    assert (lacking(wanted, ()) is None) == (not wanted.gpus)
