"""Hardware names: all that Flash ever had, and what they say about the hardware."""

import pytest

from flashmesh.functions.gpu_types import GPUS_BY_GROUP, GpuType
from flashmesh.functions.hardware import CPU_DATACENTERS, CpuInstanceType, CudaVersion, DataCenter, GpuGroup


def test_a_removed_data_centre_does_not_break_an_import() -> None:
    """Flash's own example names US_GA_2, which is closed."""
    assert DataCenter.US_GA_2.value == "US-GA-2"
    assert DataCenter.US_GA_2 not in DataCenter.all()


def test_eleven_data_centres_are_on_offer() -> None:
    assert len(DataCenter.all()) == 11
    assert DataCenter.EUR_NO_1 in DataCenter.all()
    assert frozenset({DataCenter.EU_RO_1}) == CPU_DATACENTERS


@pytest.mark.parametrize("written", ["EU-RO-1", "eu-ro-1", " EU_RO_1 "])
def test_a_data_centre_is_found_in_any_spelling(written: str) -> None:
    assert DataCenter.from_string(written) is DataCenter.EU_RO_1


def test_an_unknown_data_centre_is_refused_with_those_on_offer() -> None:
    with pytest.raises(ValueError, match="EU-RO-1"):
        DataCenter.from_string("MOON-1")


def test_retired_gpu_spellings_are_the_models_on_offer() -> None:
    assert GpuType["A40"] is GpuType.NVIDIA_A40
    assert GpuType["RTX_A4000"] is GpuType.NVIDIA_RTX_A4000
    assert GpuType.NVIDIA_H100_PCIe.value == "NVIDIA H100 PCIe"


def test_twenty_gpu_models_are_on_offer() -> None:
    offered = GpuType.all()
    assert len(offered) == 20
    assert offered[0] is GpuType.NVIDIA_GEFORCE_RTX_4090
    assert offered[-1] is GpuType.NVIDIA_B200
    assert GpuType.is_gpu_type("NVIDIA L4")
    assert not GpuType.is_gpu_type("any")
    assert not GpuType.is_gpu_type("Tesla K80")


def test_a_gpu_group_says_how_much_memory_it_means() -> None:
    assert GpuGroup.ANY.memory_gb == 0
    assert GpuGroup.ADA_48_PRO.memory_gb == 48
    assert GpuGroup.HOPPER_141.memory_gb == 141
    assert GpuGroup.ANY not in GpuGroup.all()
    assert set(GPUS_BY_GROUP) == set(GpuGroup.all())


def test_a_cpu_size_says_what_it_has() -> None:
    size = CpuInstanceType("cpu3g-2-8")
    assert (size.vcpus, size.memory_gb, size.max_disk_gb) == (2, 8, 20)
    assert CpuInstanceType.CPU5C_4_8.max_disk_gb == 60
    assert len(CpuInstanceType.all()) == 12
    assert (CpuInstanceType.ANY.vcpus, CpuInstanceType.ANY.memory_gb) == (1, 2)


def test_cuda_versions_are_ordered_text() -> None:
    assert CudaVersion("12.8") is CudaVersion.V12_8
