"""From a manifest back to the project it describes: what the server deploys from. Pure.

`project_of(build_manifest(p), p.root)` is `p`, but for the values of environment variables, which a manifest never
holds, and for what only the scan needs (problems, the list of files, their syntax).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import FlashmeshError
from flashmesh.project.model import FunctionSpec, Manifest, Project, ResourceSpec


class ManifestInvalid(FlashmeshError, ValueError):
    """This is not a manifest that this version can read. Build it again with `flash build`."""

    code = "MANIFEST_INVALID"
    status = 422


def project_of(manifest: Manifest, root: Path) -> Project:
    """The project a manifest describes, as if its files stood in `root`. Reads nothing.

    Resources have no values in `config.env` and in the `env` of `config.template`; see `with_env`.

    Raises:
        ManifestInvalid: something in it is missing, of another type, unknown, or names a file outside the project.
    """
    try:
        if str(manifest["version"]).partition(".")[0] != "1":
            raise ManifestInvalid(
                f"The manifest is of version {manifest['version']!r}, not 1.x: update flashmesh, or build again."
            )
        return Project(
            root=root,
            name=msgspec.convert(manifest.get("project_name") or root.name, str),
            resources=tuple(_resource(name, entry) for name, entry in manifest["resources"].items()),
            requirements=msgspec.convert(manifest.get("requirements", []), tuple[str, ...]),
        )
    except ManifestInvalid:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        missing = "it has no " if isinstance(error, KeyError) else ""
        raise ManifestInvalid(
            f"The manifest cannot be read: {missing}{error}. Build it again with `flash build`."
        ) from error


def with_env(resource: ResourceSpec, values: Mapping[str, str]) -> ResourceSpec:
    """The resource with the values of its environment variables, which travel apart from the manifest."""
    return dataclasses.replace(resource, config=dataclasses.replace(resource.config, env=dict(values)))


def config_of(settings: Mapping[str, Any]) -> ResourceConfig:
    """The settings of a manifest's entry, without the environment of which it has but the names.

    Raises TypeError for a setting this version does not know, ValueError for a value of another type.
    """
    values = {**settings, "env": {}}
    unknown = values.keys() - {field.name for field in dataclasses.fields(ResourceConfig)}
    if unknown:
        raise TypeError(f"there is no setting {', '.join(sorted(unknown))}")
    if values.get("template") is not None:
        values["template"] = {name: {} if name == "env" else value for name, value in values["template"].items()}
    return msgspec.convert(values, ResourceConfig)


def _resource(name: str, entry: Mapping[str, Any]) -> ResourceSpec:
    values = {
        "name": name,
        "file": _file(entry["file_path"]),
        "variable": entry["config_variable"],
        "functions": [],
        "unresolved": entry.get("unresolved", []),
        "line": entry.get("line"),
    }
    functions = tuple(_function(function) for function in entry["functions"])
    if not functions:
        raise ManifestInvalid(f"The manifest gives {name} no functions. Build it again with `flash build`.")
    config = config_of(entry["config"])
    return dataclasses.replace(msgspec.convert({**values, "config": config}, ResourceSpec), functions=functions)


def _function(entry: Mapping[str, Any]) -> FunctionSpec:
    values = {
        **entry,
        "file": _file(entry["file_path"]),
        "kind": "class" if entry["is_class"] else "function",
        "overrides": [(name, _as_tuple(value)) for name, value in entry.get("overrides", {}).items()],
    }
    return msgspec.convert(values, FunctionSpec)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _file(value: Any) -> str:
    """A path below the project's root, as the scan writes it."""
    path = PurePosixPath(msgspec.convert(value, str))
    if path.is_absolute() or ".." in path.parts or "\0" in value or path.suffix != ".py" or str(path) != value:
        raise ManifestInvalid(f"The manifest names {value!r}, which is not a Python file inside the project.")
    return str(path)
