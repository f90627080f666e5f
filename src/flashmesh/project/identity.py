"""Who a resource is, from one deploy to the next, and what a version of it is called. Pure.

A resource is the configuration object of one file under its declared name. Its name in the manifest may change (a
second configuration in the same file lengthens it); its identity, and so its endpoint's id and address, do not.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from flashmesh.kit.ids import BuildId, EndpointName
from flashmesh.project.model import ResourceSpec

SLUG_LENGTH: Final = 30
_NOT_SLUG = re.compile(r"[^a-z0-9]+")


def identity_of(entry: Mapping[str, Any]) -> str:
    """`file|declared name` of a manifest's entry of one resource; the variable that holds it, when it has no name."""
    declared = entry["config"].get("name") or entry.get("config_variable") or ""
    return _identity(entry["file_path"], declared)


def identity_of_resource(resource: ResourceSpec) -> str:
    """The same, of a resource that is not in a manifest yet."""
    return _identity(resource.file, resource.config.name or resource.variable or "")


def endpoint_id(app: str, environment: str, identity: str) -> EndpointName:
    """The id of a deployed resource's endpoint, e.g. `gpu-worker-1f0c22ab`: the same for its whole life.

    It is a valid host name label: what stands in it of the file is lower-case ASCII, at most 30 characters.
    """
    file, declared = _parts(identity)
    digest = hashlib.sha256("\0".join((app, environment, file, declared)).encode("utf-8", "surrogateescape"))
    return EndpointName(f"{_slug(file)}-{digest.hexdigest()[:8]}")


def worker_build(config_hash: str, env_hash: str) -> BuildId:
    """What workers run: 12 hex over the resource's `config_hash` and the server's keyed hash of its `env` values."""
    return BuildId(hashlib.sha256(f"{config_hash}\0{env_hash}".encode()).hexdigest()[:12])


def _identity(file: str, declared: str) -> str:
    return f"{file.replace('%', '%25').replace('|', '%7C')}|{declared}"


def _parts(identity: str) -> tuple[str, str]:
    file, _, declared = identity.partition("|")
    return file.replace("%7C", "|").replace("%25", "%"), declared


def _slug(file: str) -> str:
    stem = file.rpartition("/")[2].removesuffix(".py").lower()
    return _NOT_SLUG.sub("-", stem).strip("-")[:SLUG_LENGTH].strip("-") or "endpoint"
