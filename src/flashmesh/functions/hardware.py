"""The hardware names a resource can ask for.

Every name that Flash ever had is a member, retired ones too: an application must not stop importing because a data
centre closed. `all()` gives the names on offer today. A retired spelling of a name on offer is an alias of it.
"""

from __future__ import annotations

# ruff: noqa: PIE796 - a value given twice is an alias, which is how a retired spelling keeps working
from enum import Enum, StrEnum


class GpuGroup(Enum):
    """A class of GPUs by memory: any card with at least that much will do."""

    ANY = "any"
    ADA_24 = "ADA_24"
    ADA_32_PRO = "ADA_32_PRO"
    ADA_48_PRO = "ADA_48_PRO"
    ADA_80_PRO = "ADA_80_PRO"
    AMPERE_16 = "AMPERE_16"
    AMPERE_24 = "AMPERE_24"
    AMPERE_48 = "AMPERE_48"
    AMPERE_80 = "AMPERE_80"
    HOPPER_141 = "HOPPER_141"
    BLACKWELL_96 = "BLACKWELL_96"
    BLACKWELL_180 = "BLACKWELL_180"

    @property
    def memory_gb(self) -> int:
        """The least GPU memory a card of this group has; 0 for ANY."""
        return next((int(part) for part in self.name.split("_") if part.isdigit()), 0)

    @classmethod
    def all(cls) -> list[GpuGroup]:
        """Every group but ANY."""
        return [group for group in cls if group is not cls.ANY]


class GpuType(Enum):
    """One GPU model, by the name its driver reports."""

    ANY = "any"
    NVIDIA_GEFORCE_RTX_4090 = "NVIDIA GeForce RTX 4090"
    NVIDIA_GEFORCE_RTX_5090 = "NVIDIA GeForce RTX 5090"
    NVIDIA_RTX_6000_ADA_GENERATION = "NVIDIA RTX 6000 Ada Generation"
    NVIDIA_RTX_PRO_6000_BLACKWELL_SERVER_EDITION = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    NVIDIA_RTX_PRO_6000_BLACKWELL_WORKSTATION_EDITION = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    NVIDIA_RTX_PRO_6000_BLACKWELL_MAX_Q_WORKSTATION_EDITION = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"
    NVIDIA_H100_80GB_HBM3 = "NVIDIA H100 80GB HBM3"
    NVIDIA_RTX_A4000 = "NVIDIA RTX A4000"
    NVIDIA_RTX_A4500 = "NVIDIA RTX A4500"
    NVIDIA_RTX_4000_ADA_GENERATION = "NVIDIA RTX 4000 Ada Generation"
    NVIDIA_RTX_2000_ADA_GENERATION = "NVIDIA RTX 2000 Ada Generation"
    NVIDIA_RTX_A5000 = "NVIDIA RTX A5000"
    NVIDIA_L4 = "NVIDIA L4"
    NVIDIA_GEFORCE_RTX_3090 = "NVIDIA GeForce RTX 3090"
    NVIDIA_A40 = "NVIDIA A40"
    NVIDIA_RTX_A6000 = "NVIDIA RTX A6000"
    NVIDIA_A100_80GB_PCIe = "NVIDIA A100 80GB PCIe"
    NVIDIA_A100_SXM4_80GB = "NVIDIA A100-SXM4-80GB"
    NVIDIA_H200 = "NVIDIA H200"
    NVIDIA_B200 = "NVIDIA B200"

    # Spellings of the above in earlier releases.
    A100_80GB_PCIe = "NVIDIA A100 80GB PCIe"
    A100_SXM4_80GB = "NVIDIA A100-SXM4-80GB"
    A40 = "NVIDIA A40"
    B200 = "NVIDIA B200"
    GEFORCE_RTX_4090 = "NVIDIA GeForce RTX 4090"
    GEFORCE_RTX_5090 = "NVIDIA GeForce RTX 5090"
    H100_80GB_HBM3 = "NVIDIA H100 80GB HBM3"
    H200 = "NVIDIA H200"
    L4 = "NVIDIA L4"
    RTX_2000_ADA_GENERATION = "NVIDIA RTX 2000 Ada Generation"
    RTX_4000_ADA_GENERATION = "NVIDIA RTX 4000 Ada Generation"
    RTX_6000_ADA_GENERATION = "NVIDIA RTX 6000 Ada Generation"
    RTX_A4000 = "NVIDIA RTX A4000"
    RTX_A4500 = "NVIDIA RTX A4500"
    RTX_A5000 = "NVIDIA RTX A5000"
    RTX_A6000 = "NVIDIA RTX A6000"
    RTX_PRO_6000_BLACKWELL_MAX_Q_WORKSTATION_EDITION = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"
    RTX_PRO_6000_BLACKWELL_SERVER_EDITION = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    RTX_PRO_6000_BLACKWELL_WORKSTATION_EDITION = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"

    # Models of earlier releases; machines of one's own may well have them.
    AMD_INSTINCT_MI300X_OAM = "AMD Instinct MI300X OAM"
    A100_PCIE_40GB = "A100-PCIE-40GB"
    GEFORCE_RTX_3070 = "GeForce RTX 3070"
    GEFORCE_RTX_3080 = "GeForce RTX 3080"
    GEFORCE_RTX_3090 = "GeForce RTX 3090"
    NVIDIA_A100_PCIE_40GB = "NVIDIA A100-PCIE-40GB"
    NVIDIA_A100_SXM4_40GB = "NVIDIA A100-SXM4-40GB"
    NVIDIA_A30 = "NVIDIA A30"
    NVIDIA_A5000_ADA = "NVIDIA A5000 Ada"
    NVIDIA_GEFORCE_GTX_1050_TI = "NVIDIA GeForce GTX 1050 Ti"
    NVIDIA_GEFORCE_GTX_1060_6GB = "NVIDIA GeForce GTX 1060 6GB"
    NVIDIA_GEFORCE_GTX_1070_TI = "NVIDIA GeForce GTX 1070 Ti"
    NVIDIA_GEFORCE_GTX_1080_TI = "NVIDIA GeForce GTX 1080 Ti"
    NVIDIA_GEFORCE_GTX_1660 = "NVIDIA GeForce GTX 1660"
    NVIDIA_GEFORCE_GTX_980 = "NVIDIA GeForce GTX 980"
    NVIDIA_GEFORCE_GT_1030 = "NVIDIA GeForce GT 1030"
    NVIDIA_GEFORCE_RTX_3060 = "NVIDIA GeForce RTX 3060"
    NVIDIA_GEFORCE_RTX_3060_TI = "NVIDIA GeForce RTX 3060 Ti"
    NVIDIA_GEFORCE_RTX_3070 = "NVIDIA GeForce RTX 3070"
    NVIDIA_GEFORCE_RTX_3070_TI = "NVIDIA GeForce RTX 3070 Ti"
    NVIDIA_GEFORCE_RTX_3080 = "NVIDIA GeForce RTX 3080"
    NVIDIA_GEFORCE_RTX_3080TI = "NVIDIA GeForce RTX 3080TI"
    NVIDIA_GEFORCE_RTX_3080_TI = "NVIDIA GeForce RTX 3080 Ti"
    NVIDIA_GEFORCE_RTX_3090_TI = "NVIDIA GeForce RTX 3090 Ti"
    NVIDIA_GEFORCE_RTX_4070_TI = "NVIDIA GeForce RTX 4070 Ti"
    NVIDIA_GEFORCE_RTX_4080 = "NVIDIA GeForce RTX 4080"
    NVIDIA_GEFORCE_RTX_4080_SUPER = "NVIDIA GeForce RTX 4080 SUPER"
    NVIDIA_GEFORCE_RTX_4090_TI = "NVIDIA GeForce RTX 4090 Ti"
    NVIDIA_GEFORCE_RTX_5070_TI = "NVIDIA GeForce RTX 5070 Ti"
    NVIDIA_GEFORCE_RTX_5080 = "NVIDIA GeForce RTX 5080"
    NVIDIA_GRAPHICS_DEVICE = "NVIDIA Graphics Device"
    NVIDIA_H100_NVL = "NVIDIA H100 NVL"
    NVIDIA_H100_PCIe = "NVIDIA H100 PCIe"
    NVIDIA_H200_NVL = "NVIDIA H200 NVL"
    NVIDIA_L40 = "NVIDIA L40"
    NVIDIA_L40S = "NVIDIA L40S"
    NVIDIA_PH402_SKU_200 = "NVIDIA PH402 SKU 200"
    NVIDIA_QUADRO_GV100 = "Quadro GV100"
    NVIDIA_QUADRO_RTX_4000 = "Quadro RTX 4000"
    NVIDIA_QUADRO_RTX_5000 = "Quadro RTX 5000"
    NVIDIA_QUADRO_RTX_6000 = "Quadro RTX 6000"
    NVIDIA_RTX_3080 = "NVIDIA RTX 3080"
    NVIDIA_RTX_3080_TI = "NVIDIA RTX 3080 Ti"
    NVIDIA_RTX_4000_SFF_ADA_GENERATION = "NVIDIA RTX 4000 SFF Ada Generation"
    NVIDIA_RTX_4500_ADA_GENERATION = "NVIDIA RTX 4500 Ada Generation"
    NVIDIA_RTX_5000 = "NVIDIA RTX 5000"
    NVIDIA_RTX_5000_ADA_GENERATION = "NVIDIA RTX 5000 Ada Generation"
    NVIDIA_RTX_A2000 = "NVIDIA RTX A2000"
    NVIDIA_RTX_A2000_12GB = "NVIDIA RTX A2000 12GB"
    NVIDIA_RTX_A30 = "NVIDIA RTX A30"
    NVIDIA_RTX_A5000_ADA = "NVIDIA RTX A5000 Ada"
    NVIDIA_RTX_A5000_ADA_GENERATION = "NVIDIA RTX A5000 Ada Generation"
    NVIDIA_RTX_PRO_2000_BLACKWELL = "NVIDIA RTX PRO 2000 Blackwell"
    NVIDIA_RTX_PRO_4000_BLACKWELL = "NVIDIA RTX PRO 4000 Blackwell"
    NVIDIA_TESLA_K80 = "Tesla K80"
    NVIDIA_TESLA_T4 = "Tesla T4"
    NVIDIA_TESLA_V100_FHHL_16GB = "Tesla V100-FHHL-16GB"
    NVIDIA_TESLA_V100_PCIE_16GB = "Tesla V100-PCIE-16GB"
    NVIDIA_TESLA_V100_PCIE_32GB = "Tesla V100-PCIE-32GB"
    NVIDIA_TESLA_V100_SMX2_16GB = "Tesla V100-SMX2-16GB"
    NVIDIA_TESLA_V100_SXM2_16GB = "Tesla V100-SXM2-16GB"
    NVIDIA_TESLA_V100_SXM2_32GB = "Tesla V100-SXM2-32GB"
    NVIDIA_TESLA_V100_SXM3_32GB = "Tesla V100-SXM3-32GB"
    V100_PCIE_16GB = "V100-PCIE-16GB"

    @classmethod
    def all(cls) -> list[GpuType]:
        """The models on offer today, without ANY and without retired names."""
        return [GpuType[name] for name in _GPUS_ON_OFFER]

    @classmethod
    def is_gpu_type(cls, gpu_type: str) -> bool:
        """Whether a driver's name is one of the models on offer."""
        return any(gpu_type == model.value for model in cls.all())


_GPUS_ON_OFFER = tuple(GpuType.__members__)[1:21]
"""The first block of the class: it is kept in the order of Flash, ANY first."""


class CpuInstanceType(StrEnum):
    """A size of CPU worker: `cpu<generation><kind>-<vCPUs>-<memory in GB>`."""

    CPU3G_1_4 = "cpu3g-1-4"
    CPU3G_2_8 = "cpu3g-2-8"
    CPU3G_4_16 = "cpu3g-4-16"
    CPU3G_8_32 = "cpu3g-8-32"
    CPU3C_1_2 = "cpu3c-1-2"
    CPU3C_2_4 = "cpu3c-2-4"
    CPU3C_4_8 = "cpu3c-4-8"
    CPU3C_8_16 = "cpu3c-8-16"
    CPU5C_1_2 = "cpu5c-1-2"
    CPU5C_2_4 = "cpu5c-2-4"
    CPU5C_4_8 = "cpu5c-4-8"
    CPU5C_8_16 = "cpu5c-8-16"

    # Sizes of earlier releases.
    ANY = "any"
    CPU3G_1_2 = "cpu3g-1-2"
    CPU3G_2_4 = "cpu3g-2-4"
    CPU3G_4_8 = "cpu3g-4-8"
    CPU3G_8_16 = "cpu3g-8-16"
    CPU5C_1_4 = "cpu5c-1-4"
    CPU5C_2_8 = "cpu5c-2-8"
    CPU5C_4_16 = "cpu5c-4-16"
    CPU5C_8_32 = "cpu5c-8-32"
    CPU5G_1_4 = "cpu5g-1-4"
    CPU5G_2_8 = "cpu5g-2-8"
    CPU5G_4_16 = "cpu5g-4-16"
    CPU5G_8_32 = "cpu5g-8-32"

    @property
    def vcpus(self) -> int:
        """How many virtual CPUs; 1 for ANY."""
        return 1 if self is CpuInstanceType.ANY else int(self.value.split("-")[1])

    @property
    def memory_gb(self) -> int:
        """Memory in GB; 2 for ANY."""
        return 2 if self is CpuInstanceType.ANY else int(self.value.split("-")[2])

    @property
    def max_disk_gb(self) -> int:
        """The largest container disk: 10 GB per vCPU, 15 GB on the fifth generation."""
        return self.vcpus * (15 if self.value.startswith("cpu5") else 10)

    @classmethod
    def all(cls) -> list[CpuInstanceType]:
        """The sizes on offer today."""
        return list(cls)[:12]


class CudaVersion(Enum):
    """The lowest CUDA version a GPU worker's driver must support."""

    V11_8 = "11.8"
    V12_0 = "12.0"
    V12_1 = "12.1"
    V12_2 = "12.2"
    V12_3 = "12.3"
    V12_4 = "12.4"
    V12_5 = "12.5"
    V12_6 = "12.6"
    V12_7 = "12.7"
    V12_8 = "12.8"
    V12_9 = "12.9"
    V13_0 = "13.0"


class DataCenter(StrEnum):
    """Where a resource or volume may live, for targets that have such places."""

    US_CA_2 = "US-CA-2"
    US_IL_1 = "US-IL-1"
    US_KS_2 = "US-KS-2"
    US_MO_1 = "US-MO-1"
    US_MO_2 = "US-MO-2"
    US_NC_2 = "US-NC-2"
    US_NE_1 = "US-NE-1"
    US_WA_1 = "US-WA-1"
    EU_CZ_1 = "EU-CZ-1"
    EU_RO_1 = "EU-RO-1"
    EUR_NO_1 = "EUR-NO-1"

    # Closed, or no longer offered.
    CA_MTL_1 = "CA-MTL-1"
    EUR_IS_1 = "EUR-IS-1"
    EU_NL_1 = "EU-NL-1"
    EU_NO_1 = "EU-NO-1"
    EU_SE_1 = "EU-SE-1"
    US_CA_1 = "US-CA-1"
    US_GA_1 = "US-GA-1"
    US_GA_2 = "US-GA-2"
    US_KS_1 = "US-KS-1"
    US_MD_1 = "US-MD-1"
    US_NC_1 = "US-NC-1"
    US_OR_1 = "US-OR-1"
    US_TX_1 = "US-TX-1"

    @classmethod
    def from_string(cls, value: str) -> DataCenter:
        """`EU-RO-1`, `eu-ro-1` and `EU_RO_1` alike. Raises ValueError for a name that never was one."""
        try:
            return cls(value.strip().upper().replace("_", "-"))
        except ValueError:
            offered = ", ".join(center.value for center in cls.all())
            raise ValueError(f"Unknown data centre {value!r}. Use one of: {offered}") from None

    @classmethod
    def all(cls) -> list[DataCenter]:
        """The data centres on offer today."""
        return list(cls)[:11]


CPU_DATACENTERS: frozenset[DataCenter] = frozenset({DataCenter.EU_RO_1})
"""Where RunPod offers CPU workers."""


class ServerlessType(Enum):
    """QB: calls wait in a queue for a worker. LB: HTTP requests go straight to one."""

    QB = "QB"
    LB = "LB"


class ServerlessScalerType(Enum):
    """What decides how many workers run: how long calls wait, or how many there are."""

    QUEUE_DELAY = "QUEUE_DELAY"
    REQUEST_COUNT = "REQUEST_COUNT"


GPUS_BY_GROUP: dict[GpuGroup, tuple[GpuType, ...]] = {
    GpuGroup.ADA_24: (GpuType.NVIDIA_GEFORCE_RTX_4090,),
    GpuGroup.ADA_32_PRO: (GpuType.NVIDIA_GEFORCE_RTX_5090,),
    GpuGroup.ADA_48_PRO: (GpuType.NVIDIA_RTX_6000_ADA_GENERATION,),
    GpuGroup.ADA_80_PRO: (GpuType.NVIDIA_H100_80GB_HBM3,),
    GpuGroup.AMPERE_16: (
        GpuType.NVIDIA_RTX_A4000,
        GpuType.NVIDIA_RTX_A4500,
        GpuType.NVIDIA_RTX_4000_ADA_GENERATION,
        GpuType.NVIDIA_RTX_2000_ADA_GENERATION,
    ),
    GpuGroup.AMPERE_24: (GpuType.NVIDIA_RTX_A5000, GpuType.NVIDIA_L4, GpuType.NVIDIA_GEFORCE_RTX_3090),
    GpuGroup.AMPERE_48: (GpuType.NVIDIA_A40, GpuType.NVIDIA_RTX_A6000),
    GpuGroup.AMPERE_80: (GpuType.NVIDIA_A100_80GB_PCIe, GpuType.NVIDIA_A100_SXM4_80GB),
    GpuGroup.HOPPER_141: (GpuType.NVIDIA_H200,),
    GpuGroup.BLACKWELL_96: (
        GpuType.NVIDIA_RTX_PRO_6000_BLACKWELL_SERVER_EDITION,
        GpuType.NVIDIA_RTX_PRO_6000_BLACKWELL_WORKSTATION_EDITION,
        GpuType.NVIDIA_RTX_PRO_6000_BLACKWELL_MAX_Q_WORKSTATION_EDITION,
    ),
    GpuGroup.BLACKWELL_180: (GpuType.NVIDIA_B200,),
}
"""The models RunPod puts in each group."""
