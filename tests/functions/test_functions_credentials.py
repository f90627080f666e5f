"""Which key goes to which address."""

from pathlib import Path

import pytest

from flashmesh.functions.credentials import check_address, key_for
from flashmesh.functions.errors import InsecureAddress

KEYS = {"RUNPOD_API_KEY": "runpod", "FLASH_TOKEN": "flash", "FLASH_SERVER": "https://flash.example:7470"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.runpod.ai/v2/x/run", "runpod"),
        ("https://x.api.runpod.ai/y", "runpod"),
        ("https://rest.runpod.io/v1", "runpod"),
        ("https://runpod.ai/", "runpod"),
        ("https://evilrunpod.ai/", None),
        ("https://runpod.ai.evil.com/", None),
        ("https://example.com/runpod.ai", None),
        ("https://api.runpod.ai@evil.com/", None),
        ("https://flash.example:7470/v2/x", "flash"),
        ("https://flash.example/v2/x", None),
        ("http://127.0.0.1:7470/v2/x", None),
    ],
)
def test_a_key_goes_only_where_it_belongs(url: str, key: str | None) -> None:
    assert key_for(url, KEYS) == key


def test_a_host_named_by_a_runpod_variable_gets_the_runpod_key() -> None:
    environment = {"RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_BASE_URL": "http://127.0.0.1:9000/v2"}
    assert key_for("http://127.0.0.1:9000/v2/x/run", environment) == "k"
    assert key_for("http://127.0.0.1:9001/v2/x/run", environment) is None
    assert key_for("https://other.example/v2", environment) is None


def test_a_saved_key_is_used_when_the_environment_has_none(home: Path) -> None:
    config = home / ".runpod" / "config.toml"
    config.parent.mkdir()
    config.write_text('[default]\napi_key = "saved"\n')
    assert key_for("https://api.runpod.ai/v2", {}) == "saved"
    assert key_for("https://api.runpod.ai/v2", {"RUNPOD_API_KEY": "set"}) == "set"
    config.write_text('apikey = "ctl"\n')
    assert key_for("https://api.runpod.ai/v2", {}) == "ctl"
    config.write_text("not toml [")
    assert key_for("https://api.runpod.ai/v2", {}) is None


@pytest.mark.parametrize(
    "url",
    ["https://example.com/x", "http://localhost:1/x", "http://127.0.0.1:1", "http://[::1]:2/x", "http://a.localhost/"],
)
def test_https_and_this_machine_may_be_called(url: str) -> None:
    assert check_address(url).scheme in {"http", "https"}


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://localhost/x", "file:///etc/passwd", "x", "http://10.0.0.1/"]
)
def test_nothing_is_sent_in_clear_to_another_machine(url: str) -> None:
    with pytest.raises(InsecureAddress, match="https"):
        check_address(url)


def test_a_refused_address_is_shown_without_its_secrets() -> None:
    with pytest.raises(InsecureAddress) as refused:
        check_address("http://user:hunter2@example.com/x?token=hunter2")
    assert "hunter2" not in str(refused.value)
