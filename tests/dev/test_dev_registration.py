"""What a script tells its session becomes a resource; source is executed only when it bears the session's signature."""

from pathlib import Path
from typing import Any

import pytest

from flashmesh.dev.session.registration import read, source_purpose
from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import UntrustedPayload
from flashmesh.wire.signature import Signer

SIGNER = Signer(b"k" * 32, "dev")


def arguments(root: Path, **more: Any) -> dict[str, Any]:
    function = {
        "id": "script.f",
        "name": "f",
        "module": "script",
        "file": str(root / "script.py"),
        "line": 3,
        "qualname": "f",
        "kind": "function",
        "is_async": False,
        "is_generator": False,
        "methods": [],
    }
    function |= {key: more.pop(key) for key in list(more) if key in function}
    config = ResourceConfig(resource_type="CpuLiveServerless").to_dict()
    return {"resources": [{"name": "f", "root": str(root), "config": config, "functions": [function], **more}]}


def test_a_file_below_the_root_is_named_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def f(): pass")
    [found] = read(arguments(tmp_path), signer=SIGNER, sources=tmp_path)
    assert (found.resource.name, found.resource.file, found.project.root) == ("f", "script.py", tmp_path)
    assert found.resource.functions[0].id == "script.f"


def test_the_build_changes_with_the_file_and_not_otherwise(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("def f(): pass")
    [first] = read(arguments(tmp_path), signer=SIGNER, sources=tmp_path)
    [again] = read(arguments(tmp_path), signer=SIGNER, sources=tmp_path)
    script.write_text("def f(): return 1")
    [edited] = read(arguments(tmp_path), signer=SIGNER, sources=tmp_path)
    assert first.build == again.build != edited.build


def test_signed_source_is_written_into_the_sessions_directory(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    sealed = SIGNER.seal(b"def f(): return 7", source_purpose("f"))
    [found] = read(arguments(tmp_path / "work", file=None, source=sealed), signer=SIGNER, sources=sources)
    [written] = sources.iterdir()
    assert written.read_text() == "def f(): return 7"
    assert found.resource.functions[0].file == str(written)


@pytest.mark.parametrize(
    "sealed",
    [
        b"def f(): pass",
        Signer(b"x" * 32, "dev").seal(b"def f(): pass", source_purpose("f")),
        SIGNER.seal(b"def f(): pass", source_purpose("another")),
    ],
    ids=["unsigned", "another session's", "another function's"],
)
def test_source_without_this_sessions_signature_is_refused_and_nothing_written(tmp_path: Path, sealed: bytes) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    with pytest.raises(UntrustedPayload):
        read(arguments(tmp_path, file=None, source=sealed), signer=SIGNER, sources=sources)
    assert not list(sources.iterdir())
