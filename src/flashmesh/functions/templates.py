"""PodTemplate: what a container is made of, for targets that run containers."""

from __future__ import annotations

from flashmesh.functions import checks
from flashmesh.functions.declared import Declared, Setting, table
from flashmesh.functions.errors import DeclarationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_DISK_GB = 64


class KeyValuePair(Declared):
    """One environment variable of a template."""

    settings = table(Setting("key", checks.some_text, None), Setting("value", checks.text, None))

    if TYPE_CHECKING:
        key: str
        value: str

    def validate(self) -> None:
        for name in ("key", "value"):
            if self.__dict__[name] is None:
                raise DeclarationError(f"KeyValuePair needs a {name}.")

    @classmethod
    def from_dict(cls, data: dict[str, str]) -> list[KeyValuePair]:
        return [cls(key=key, value=value) for key, value in checks.environment("env", data).items()]


def _pairs(name: str, value: Any) -> list[KeyValuePair]:
    if hasattr(value, "items"):
        return KeyValuePair.from_dict(value)
    pairs = []
    for item in value:
        if isinstance(item, KeyValuePair):
            pairs.append(item)
        elif isinstance(item, dict):
            pairs.append(KeyValuePair(**item))
        else:
            raise DeclarationError(f"{name} must be a list of KeyValuePair or a dictionary, got {type(item).__name__}.")
    return pairs


class PodTemplate(Declared):
    """Container settings: disk in GB, ports, start script, registry credentials, environment."""

    settings = table(
        Setting("id", checks.text, None),
        Setting("name", checks.text, ""),
        Setting("imageName", checks.text, "", "image", "image_name"),
        Setting("containerDiskInGb", checks.integer(1), DEFAULT_DISK_GB, "container_disk_in_gb"),
        Setting("containerRegistryAuthId", checks.text, "", "container_registry_auth_id"),
        Setting("dockerArgs", checks.text, "", "docker_args"),
        Setting("env", _pairs, []),
        Setting("ports", checks.text, ""),
        Setting("startScript", checks.text, "", "start_script"),
        Setting("advancedStart", checks.flag, False, "advanced_start"),
        Setting("config", checks.mapping, {}),
        Setting("volumeInGb", checks.integer(0), None, "volume_in_gb"),
        Setting("volumeMountPath", checks.text, None, "volume_mount_path"),
        Setting("boundEndpointId", checks.text, None, "bound_endpoint_id"),
    )

    if TYPE_CHECKING:
        id: str | None
        name: str
        imageName: str  # noqa: N815 - Flash's name
        containerDiskInGb: int  # noqa: N815 - Flash's name
        env: list[KeyValuePair]

    def to_dict(self) -> dict[str, Any]:
        """Every setting that has a value, in plain JSON values; `env` as a dictionary."""
        values = self.model_dump(exclude_none=True)
        values["env"] = {pair.key: pair.value for pair in self.env or ()}
        return values


def template(name: str, value: Any) -> PodTemplate:
    """A check: a PodTemplate (copied: the resource completes its own), or a dictionary of its settings."""
    if isinstance(value, PodTemplate):
        return value.model_copy()
    if isinstance(value, dict):
        return PodTemplate(**value)
    raise DeclarationError(f"{name} must be a PodTemplate, got {value!r}.")
