"""A script's function, told to its session: the query `register`.

    {"resources": [{"name", "root", "file", "config", "functions": [
        {"id", "name", "module", "file", "line", "qualname", "kind", "is_async", "is_generator", "dependencies",
         "methods": [{"name", "is_async", "is_generator"}]}], "source"?: sealed bytes}]}
    -> {"builds": {name: build}}

`file` is absolute. Functions without one (None) are in the module's text in `source`, sealed with the session's key:
what is executed was written by somebody who can read that key. Registering the same again changes nothing; anything
else under the same name replaces what was there, as an edit does.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import BuildId, EndpointName, FunctionId
from flashmesh.project.model import FunctionSpec, MethodSpec, Project, ResourceSpec
from flashmesh.wire.signature import Purpose, Signer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One resource as registered: what the target is given."""

    resource: ResourceSpec
    project: Project
    build: BuildId


def read(arguments: Mapping[str, Any], *, signer: Signer, sources: Path) -> list[Registered]:
    """Every resource that is registered, the sources of functions without a file written below `sources`.

    Raises:
        UntrustedPayload: a source bears no valid signature. Nothing was written then.
    """
    texts = {
        entry["name"]: signer.open(entry["source"], source_purpose(entry["name"]))
        for entry in arguments["resources"]
        if entry.get("source") is not None
    }
    files = {name: _write(text, sources) for name, text in texts.items()}
    return [_resource(entry, files.get(entry["name"])) for entry in arguments["resources"]]


def source_purpose(resource: str) -> Purpose:
    """What the signature of a source is for: the functions of this resource."""
    return Purpose(resource, "call", "source")


def _write(text: bytes, sources: Path) -> str:
    path = sources / f"{hashlib.sha256(text).hexdigest()[:16]}.py"
    path.write_bytes(text)
    return str(path)


def _resource(entry: Mapping[str, Any], source_file: str | None) -> Registered:
    root = Path(entry["root"])
    functions = tuple(_function(function, root, source_file) for function in entry["functions"])
    config = ResourceConfig.from_dict(entry["config"])
    name = EndpointName(entry["name"])
    resource = ResourceSpec(name=name, file=functions[0].file, variable=None, config=config, functions=functions)
    named = tuple(sorted({function.file for function in functions}))
    project = Project(root=root, name=root.name or "script", resources=(resource,), files=named)
    return Registered(resource=resource, project=project, build=_build(resource, root))


def _function(entry: Mapping[str, Any], root: Path, source_file: str | None) -> FunctionSpec:
    path = Path(entry["file"] or source_file or "")
    return FunctionSpec(
        id=FunctionId(entry["id"]),
        name=entry["name"],
        module=entry["module"],
        file=path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path),
        line=entry["line"],
        qualname=entry["qualname"],
        kind=entry["kind"],
        is_async=entry["is_async"],
        is_generator=entry["is_generator"],
        dependencies=tuple(entry.get("dependencies", ())),
        methods=tuple(MethodSpec(line=entry["line"], **method) for method in entry["methods"]),
    )


def _build(resource: ResourceSpec, root: Path) -> BuildId:
    """12 hex over configuration, functions and the bytes of their files; a module they import is not watched here."""
    shape = [resource.config.to_dict(), [dataclasses.asdict(function) for function in resource.functions]]
    total = hashlib.sha256(json.dumps(shape, sort_keys=True, default=repr).encode())
    for file in sorted({function.file for function in resource.functions}):
        path = root / file
        total.update(os.fsencode(path) + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return BuildId(total.hexdigest()[:12])
