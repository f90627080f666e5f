"""The hardware names a resource can ask for.

Every name that Flash ever had is a member, retired ones too: an application must not stop importing because a data
centre closed. `all()` gives the names on offer today. GPU models have a file of their own.
"""

from __future__ import annotations

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
