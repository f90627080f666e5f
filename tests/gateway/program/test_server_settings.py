"""Settings of the server: where they come from, what they take, what a bad one is told."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.gateway.settings import BadSetting, ServerSettings, load, variable_of


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "flash.toml"
    path.write_text(text)
    return path


def test_without_anything_the_server_is_this_machines_own() -> None:
    settings = load({"HOME": "/home/ada"})
    assert (settings.host, settings.port, settings.loopback) == ("127.0.0.1", 7470, True)
    assert settings.allow_commands is False
    assert settings.durability == "full"
    assert settings.drain_s == 30


def test_an_option_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, '[server]\nport = 1\nhost = "10.0.0.1"\ndrain = "5m"\n')
    settings = load({"FLASH_SERVER_PORT": "2", "FLASH_SERVER_HOST": "10.0.0.2"}, path, {"port": 3, "host": None})
    assert (settings.port, settings.host, settings.drain_s) == (3, "10.0.0.2", 300)


def test_an_empty_variable_and_an_option_not_given_count_as_absent() -> None:
    assert load({"FLASH_SERVER_PORT": ""}, None, {"port": None, "allow_origin": ()}).port == 7470


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("FLASH_SERVER_DRAIN", "1.5s", "drain_s", 1.5),
        ("FLASH_SERVER_DRAIN", "0", "drain_s", 0),
        ("FLASH_SERVER_RETENTION_AGE", "7d", "retention_age_s", 604800),
        ("FLASH_SERVER_HEAD_TIMEOUT", "500ms", "head_timeout_s", 0.5),
        ("FLASH_MAX_BODY_BYTES", "1MiB", "max_body_bytes", 1048576),
        ("FLASH_MAX_BODY_BYTES", "1000", "max_body_bytes", 1000),
        ("FLASH_SERVER_RETENTION_BYTES", "2 GB", "retention_bytes", 2_000_000_000),
        ("FLASH_SERVER_ALLOW_ORIGIN", "http://a, http://b", "allow_origin", ("http://a", "http://b")),
        ("FLASH_SERVER_ALLOW_COMMANDS", "yes", "allow_commands", True),
        ("FLASH_SERVER_INSTALL", "off", "install", False),
        ("FLASH_SERVER_DURABILITY", "NORMAL", "durability", "normal"),
        ("FLASH_HOME", "/srv/flash", "home", Path("/srv/flash")),
    ],
)
def test_values_are_read_with_their_units(variable: str, value: str, field: str, expected: object) -> None:
    assert getattr(load({variable: value}), field) == expected


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("FLASH_SERVER_PORT", "http", "a whole number from 0 to 65535"),
        ("FLASH_SERVER_PORT", "70000", "a whole number from 0 to 65535"),
        ("FLASH_SERVER_PORT", "-1", "a whole number from 0 to 65535"),
        ("FLASH_SERVER_DRAIN", "soon", "a duration such as"),
        ("FLASH_SERVER_DRAIN", "-5", "a duration such as"),
        ("FLASH_SERVER_DRAIN", "٣", "a duration such as"),
        ("FLASH_SERVER_RETENTION_BYTES", "5 parsecs", "a size in bytes such as"),
        ("FLASH_SERVER_ALLOW_COMMANDS", "perhaps", "true or false"),
        ("FLASH_SERVER_DURABILITY", "most", "one of full, normal"),
        ("FLASH_SERVER_LOG_FORMAT", "xml", "one of auto, json, pretty"),
    ],
)
def test_a_bad_variable_is_named_with_what_it_takes(variable: str, value: str, says: str) -> None:
    with pytest.raises(BadSetting) as raised:
        load({variable: value})
    assert variable in str(raised.value)
    assert repr(value) in str(raised.value)
    assert says in str(raised.value)


def test_a_bad_option_is_named_as_it_was_typed() -> None:
    with pytest.raises(BadSetting, match=r"--max-connections is 0"):
        load({}, None, {"max_connections": 0})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nprot = 1\n", "no setting `prot`"),
        ("[server]\nport = true\n", "`port` in"),
        ("server = 3\n", "is a table"),
        ("[server\n", "is not TOML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(BadSetting) as raised:
        load({}, path)
    assert str(path) in str(raised.value)
    assert says in str(raised.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="cannot be read"):
        load({}, tmp_path / "none.toml")


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("")
    with pytest.raises(BadSetting, match="belong together"):
        load({"FLASH_SERVER_TLS_CERT": str(tmp_path / "cert.pem")})
    with pytest.raises(BadSetting, match="is not there"):
        load({}, None, {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")})


def test_a_project_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"--project.*no such directory"):
        load({}, None, {"project": tmp_path / "none"})


def test_a_network_that_is_none_is_an_error() -> None:
    with pytest.raises(BadSetting, match=r"FLASH_SERVER_PLAIN_NETWORKS.*10\.0"):
        load({"FLASH_SERVER_PLAIN_NETWORKS": "10.0"})


def test_settings_never_change() -> None:
    settings = load({})
    with pytest.raises(AttributeError):
        settings.port = 1  # type: ignore[misc]


@given(st.dictionaries(st.sampled_from(["FLASH_SERVER_PORT", "FLASH_SERVER_DRAIN", "FLASH_MAX_BODY_BYTES"]), st.text()))
def test_any_text_is_read_or_refused_by_name(env: dict[str, str]) -> None:
    try:
        settings = load(env)
    except BadSetting as error:
        assert any(variable in str(error) for variable in env)
    else:
        assert isinstance(settings, ServerSettings)
        assert 0 <= settings.port <= 65535


def test_every_setting_is_in_the_manual() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "server.md").read_text()
    for field in dataclasses.fields(ServerSettings):
        assert variable_of(field) in manual, variable_of(field)


def test_every_option_of_the_command_is_a_setting() -> None:
    from flashmesh.cli.server import server

    fields = {field.name for field in dataclasses.fields(ServerSettings)}
    options = {parameter.name for parameter in server.params}
    assert options - fields == {"config", "detach", "ready_fd", "verbose"}
