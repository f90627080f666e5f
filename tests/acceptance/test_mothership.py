"""A server that is started inside a build serves it, and remembers what it served."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed_fixtures import CPU, Machine, call, machine, until


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


def unpacked(here: Machine, version: str) -> Path:
    """The manifest of a build of that version, its files beside it, as in an image."""
    root = here.project(cpu=CPU.replace("{version}", version))
    here.flash("build", cwd=root)
    image = here.folder / "image"
    shutil.rmtree(image, ignore_errors=True)
    with tarfile.open(root / ".flash" / "archive.tar.gz") as archive:
        archive.extractall(image, filter="data")
    return image / "flash_manifest.json"


def log_of(here: Machine) -> str:
    return "".join(path.read_text() for path in here.home.glob("hosts/*/server/logs/server.log"))


def test_a_mothership_serves_its_build_and_then_what_it_has_stored(here: Machine) -> None:
    """At its first start the build it stands in; another build that lies there later is told, replaced, and not
    served. Its manifest is there all the time."""
    manifest = unpacked(here, "1")
    own = {"FLASH_IS_MOTHERSHIP": "true", "FLASH_MANIFEST_PATH": str(manifest), "FLASH_APP": "shop"}
    here.env |= own | {"GREETING": "hello"}
    here.serve()
    endpoint = until(lambda: next(iter(served(here)), None), "the first deploy")
    assert call(endpoint, "version") == "1"
    assert here.api("GET", "/manifest?app=shop&env=production")[1]["resources"].keys() == {"cpu"}
    here.flash("server", "stop")
    unpacked(here, "2")
    here.serve()
    until(lambda: "is another build" in log_of(here), "the notice")
    assert call(here.endpoint("cpu"), "version") == "1"
    until(lambda: json.loads(manifest.read_text()).get("environment") == "production", "the copy's replacement")
    here.flash("server", "stop")
    copy = json.loads(manifest.read_text())
    copy["resources"]["cpu"]["config"]["workers_max"] += 1
    manifest.chmod(0o600)
    manifest.write_text(json.dumps(copy))
    here.serve()
    until(lambda: log_of(here).count("is another build") == 2, "the notice that settings differ")
    until(lambda: json.loads(manifest.read_text()) != copy, "the copy's replacement")


def test_a_mothership_without_a_build_says_where_it_looked(here: Machine) -> None:
    """And serves what it has."""
    here.env |= {"FLASH_IS_MOTHERSHIP": "true", "FLASH_MANIFEST_PATH": str(here.folder / "none.json")}
    here.serve()
    until(lambda: "none.json" in log_of(here) and "FLASH_MANIFEST_PATH" in log_of(here), "the notice")
    assert here.api("GET", "/readyz")[0] == 200


def served(here: Machine) -> list[dict[str, object]]:
    found = [one for place in here.status() for one in place["endpoints"]]
    return [one for one in found if one["status"] == "deployed"]
