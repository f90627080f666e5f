"""NetworkVolume: storage that outlives workers and that several of them share."""

from __future__ import annotations

from flashmesh.functions import checks
from flashmesh.functions.declared import Declared, Setting, table
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.hardware import DataCenter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flashmesh.functions.config import VolumeConfig


class NetworkVolume(Declared):
    """A volume by name (made when missing) or by the id of one that exists; at least one of the two.

    `size` is in GB, 10 to 4096.
    """

    settings = table(
        Setting("name", checks.some_text, None),
        Setting("id", checks.some_text, None),
        Setting("size", checks.integer(10, 4096), 100, "size_gb"),
        Setting("dataCenterId", checks.datacenter, DataCenter.EU_RO_1, "datacenter", "data_center_id"),
    )

    if TYPE_CHECKING:
        name: str | None
        id: str | None
        size: int
        dataCenterId: DataCenter  # noqa: N815 - Flash's name
        datacenter: DataCenter

        def __init__(
            self,
            *,
            name: str | None = None,
            id: str | None = None,
            size: int = 100,
            datacenter: DataCenter | str = DataCenter.EU_RO_1,
            **other: Any,
        ) -> None: ...

    def validate(self) -> None:
        if self.name is None and self.id is None:
            raise DeclarationError("NetworkVolume needs a name (made when missing) or an id (of one that exists).")

    @property
    def is_created(self) -> bool:
        """Whether it names a volume that exists already."""
        return self.id is not None

    def to_config(self) -> VolumeConfig:
        from flashmesh.functions.config import VolumeConfig  # dataclasses are slow to import

        return VolumeConfig(name=self.name, id=self.id, size_gb=self.size, datacenter=self.dataCenterId.value)


def volume(name: str, value: Any) -> NetworkVolume:
    """A check: a NetworkVolume, or a dictionary of its settings."""
    if isinstance(value, NetworkVolume):
        return value
    if isinstance(value, dict):
        return NetworkVolume(**value)
    raise DeclarationError(f"{name} must be a NetworkVolume, got {value!r}.")


def volumes(name: str, value: Any) -> list[NetworkVolume]:
    """A check: a list of volumes that is not empty; one alone is a list of one."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items:
        raise DeclarationError(f"{name} must not be an empty list. Leave it out instead.")
    return [volume(f"{name}[{index}]", item) for index, item in enumerate(items)]


def check_places(volumes: list[NetworkVolume], datacenters: list[DataCenter]) -> None:
    """One volume per data centre, each in a data centre of the resource (an empty list means any)."""
    seen: dict[DataCenter, str] = {}
    for item in volumes:
        label = item.name or item.id or ""
        place = item.dataCenterId
        if place in seen:
            raise DeclarationError(
                f"Volumes {seen[place]!r} and {label!r} are both in {place.value}. Keep one volume per data centre."
            )
        seen[place] = label
        if datacenters and place not in datacenters:
            listed = ", ".join(center.value for center in datacenters)
            raise DeclarationError(
                f"Volume {label!r} is in {place.value}, but the resource runs in {listed}. Add it there."
            )
