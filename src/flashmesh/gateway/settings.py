"""What `flash server` is told: one frozen object, from options, environment variables and the `[server]` table of a
`flash.toml`, in this order.

A value is text in the environment and on the command line, and may be text, a number, true or false, or a list of texts
in the file. Durations take `30`, `1.5s`, `5m`, `24h`, `7d`; sizes take `65536`, `64MB`, `1GiB`.
"""

# ruff: noqa: RUF009 - `_setting` is dataclasses.field with our metadata
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.home import flash_home

DEFAULT_PORT: Final = 7470
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class BadSetting(FlashmeshError, ValueError):
    """A setting of the server has a value that cannot be used."""

    code = "BAD_SETTING"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value.expanduser().absolute()
    return Path(_text(value)).expanduser().absolute()


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise ValueError("true or false")
    return found


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part for part in (part.strip() for part in value.split(",")) if part)
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ValueError("texts, separated by commas")


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            number = int(value) if not isinstance(value, bool | float) else None
        except (TypeError, ValueError):
            number = None
        if number is None or not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return read


def _seconds(value: Any) -> float:
    number = _measure(value, _SECONDS)
    if number is None:
        raise ValueError("a duration such as 30, 1.5s, 5m or 24h")
    return number


def _size(value: Any) -> int:
    number = _measure(value, _BYTES)
    if number is None or number < 1:
        raise ValueError("a size in bytes such as 65536, 64MB or 1GiB")
    return int(number)


def _measure(value: Any, units: Mapping[str, float]) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value < 2**53 else None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value), re.ASCII)
    unit = None if found is None else units.get(found[2].lower())
    return None if found is None or unit is None else float(found[1]) * unit


def _choice(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise ValueError("one of " + ", ".join(words))
        return word

    return read


def _setting(read: Callable[[Any], Any], default: Any = dataclasses.MISSING, variable: str = "") -> Any:
    return dataclasses.field(default=default, metadata={"read": read, "variable": variable})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One field per setting. Its variable is `FLASH_SERVER_` and the field in capitals, unless the field says another;
    its key in the file is the field's name."""

    home: Path = _setting(_path, variable="FLASH_HOME")
    """Caches, volumes, and the state of this machine. Default `~/.flashmesh`, as for every command."""
    data: Path | None = _setting(_path, None)
    """The data directory: database, results, logs, address. Default `<home>/hosts/<machine id>/server`: homes may be
    shared by machines, a database may not. Must not be on a network file system."""
    project: Path | None = _setting(_path, None)
    """A project whose functions are served, without a deploy step. Default none."""
    keep_endpoints: bool = _setting(_flag, False)
    """Whether endpoints serve on when the server crashes, to be taken over when it returns. Default no: a server with
    `project` is a session, of which no process stays."""
    host: str = _setting(_text, "127.0.0.1")
    """Address the port is opened on. Default: this machine only; elsewhere every request needs a token, over TLS."""
    port: int = _setting(_whole(0, 65535), DEFAULT_PORT)
    """HTTP port; 0 = any free one. Default 7470, which commands look for."""
    endpoint_host: str = _setting(_text, "127.0.0.1")
    """Address that deployed endpoints listen on, each at a port of its own, which it keeps. Default: this machine only;
    elsewhere it must be in one of `plain_networks`, as endpoints speak no TLS."""
    link_host: str = _setting(str, "")
    """Address on which workers of other machines dial in, over TLS. Default empty: only the Unix socket, as nobody
    else has workers."""
    link_port: int = _setting(_whole(0, 65535), 7471)
    """Port of that link; 0 = any free one. Counts only with `link_host`."""
    tls_cert: Path | None = _setting(_path, None)
    """PEM certificate chain of the HTTP port. Default none: loopback speaks plain HTTP, other addresses get a
    certificate of the server's own CA."""
    tls_key: Path | None = _setting(_path, None)
    """PEM private key of `tls_cert`."""
    plain_networks: tuple[str, ...] = _setting(_texts, ())
    """Networks (`10.42.0.0/16`) whose addresses may be served without TLS: an overlay or a cluster's own, which encrypt
    or isolate by themselves. Default none."""
    allow_origin: tuple[str, ...] = _setting(_texts, ())
    """Origins of web pages that may call. Default none: a page somebody happens to visit must not run functions."""
    allow_host: tuple[str, ...] = _setting(_texts, ())
    """Names besides loopback that requests without a token may be addressed to. Default none (DNS rebinding)."""
    allow_commands: bool = _setting(_flag, False)
    """Whether functions made by POST may start a `command` on this machine. Default no: it is code from the network."""
    durability: Literal["full", "normal"] = _setting(_choice("full", "normal"), "full")
    """`full`: what was answered 202 survives a power cut. `normal`: it survives the end of the server, not always that
    of the machine, and costs no fsync per commit."""
    retention_count: int = _setting(_whole(1, 10**9), 100_000)
    """Most ended executions kept. Default: about 100 MB of records."""
    retention_age_s: float = _setting(_seconds, 24 * 3600.0, variable="FLASH_SERVER_RETENTION_AGE")
    """How long ended executions are kept. Default a day: so long an idempotency key is promised to be known."""
    retention_bytes: int = _setting(_size, 1024**3)
    """Most bytes of results kept. Default 1 GiB: a disk's worth that nobody misses."""
    max_body_bytes: int = _setting(_size, 64 * 1024**2, variable="FLASH_MAX_BODY_BYTES")
    """Largest request body. Default 64 MiB: larger inputs belong into files or object stores."""
    max_artifact_bytes: int = _setting(_size, 500 * 10**6)
    """Largest artifact of a build. Default 500 MB, as `flash build` makes them at most."""
    head_timeout_s: float = _setting(_seconds, 10.0, variable="FLASH_SERVER_HEAD_TIMEOUT")
    """How long a request's head may take to arrive. Default 10 s: slower ones hold connections on purpose."""
    body_timeout_s: float = _setting(_seconds, 60.0, variable="FLASH_SERVER_BODY_TIMEOUT")
    """How long its body may take. Default a minute: 64 MiB on a slow line."""
    max_connections: int = _setting(_whole(1, 10**6), 10_000)
    """Most HTTP connections at a time. Default 10 000: about 100 MB when all are idle."""
    lean: bool = _setting(_flag, True)
    """Whether calls take the short way through our own HTTP server. Default yes; no sends all through uvicorn."""
    drain_s: float = _setting(_seconds, 30.0, variable="FLASH_SERVER_DRAIN")
    """How long running calls may take to finish when the server is told to stop. Default 30 s, an invoke's wait."""
    install: bool = _setting(_flag, True)
    """Whether packages that functions declare may be installed at their first call. Default yes."""
    mothership: bool = _setting(_flag, False, variable="FLASH_IS_MOTHERSHIP")
    """Whether the server deploys the build it was started in: at its first start; later what it has stored counts."""
    manifest_path: Path | None = _setting(_path, None, variable="FLASH_MANIFEST_PATH")
    """The manifest of that build; its files stand beside it. Default `flash_manifest.json` in the working directory."""
    runpod_endpoint_id: str = _setting(str, "", variable="RUNPOD_ENDPOINT_ID")
    """Of a mothership on RunPod: by which it is known outside. Default empty: the server's own address counts."""
    log_format: Literal["auto", "json", "pretty"] = _setting(_choice("auto", "json", "pretty"), "auto")
    """Form of what the server writes. `auto`: for people on a terminal, JSON lines elsewhere."""
    log_invocations: bool = _setting(_flag, True)
    """Whether every invocation ends with a line. Default yes; it is where to look first when something was slow."""
    log_bytes: int = _setting(_size, 10 * 1024**2)
    """Size at which an endpoint's log file is rotated. Default 10 MiB: opens in any editor."""
    log_files: int = _setting(_whole(1, 1000), 5)
    """Files kept per endpoint, the current one included. Default 5."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the port."""
        return self.host in LOOPBACK


def load(env: Mapping[str, str], file: Path | None = None, options: Mapping[str, Any] | None = None) -> ServerSettings:
    """The settings of a server.

    Args:
        file: a TOML file whose `[server]` table counts; it must exist. None: no file.
        options: by field name, as given on the command line; None values are left out.
    Raises:
        BadSetting: names the variable, key or option, what it holds and what it takes.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None and value != ()}
    table = {} if file is None else _table(file)
    fields = {field.name: field for field in dataclasses.fields(ServerSettings)}
    for name in table:
        if name.replace("-", "_") not in _keys(fields):
            raise BadSetting(
                f"{file}: [server] has no setting `{name}`. There are: {', '.join(sorted(_keys(fields)))}."
            )
    values: dict[str, Any] = {"home": flash_home(env)}
    stored = {_keys(fields)[name.replace("-", "_")]: (name, value) for name, value in table.items()}
    for name, field in fields.items():
        variable = variable_of(field)
        if name in given:
            values[name] = _read(field, given[name], option_of(name))
        elif env.get(variable, "") != "":
            values[name] = _read(field, env[variable], variable)
        elif name in stored:
            key, value = stored[name]
            values[name] = _read(field, value, f"`{key}` in {file}")
    return _checked(ServerSettings(**values))


def variable_of(field: "dataclasses.Field[Any]") -> str:
    """The environment variable of a field."""
    return field.metadata["variable"] or f"FLASH_SERVER_{field.name.upper()}"


def option_of(name: str) -> str:
    """The command-line option of a field."""
    return "--" + _key(name).replace("_", "-")


def _key(name: str) -> str:
    return name.removesuffix("_s") if name.endswith(("drain_s", "timeout_s", "age_s")) else name


def _keys(fields: Mapping[str, Any]) -> dict[str, str]:
    """Field by key of the file: a duration says its unit itself, so its key has none."""
    return {_key(name): name for name in fields}


def _table(file: Path) -> dict[str, Any]:
    import tomllib  # only where there is a file

    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise BadSetting(f"{file} is not TOML: {error}.") from error
    table = document.get("server", {})
    if not isinstance(table, dict):
        raise BadSetting(f"{file}: `server` is a table: write [server].")
    return table


def _read(field: "dataclasses.Field[Any]", value: Any, place: str) -> Any:
    try:
        return field.metadata["read"](value)
    except ValueError as error:
        raise BadSetting(f"{place} is {value!r}: it takes {error}.") from error


def _checked(settings: ServerSettings) -> ServerSettings:
    """What only two settings together can get wrong."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise BadSetting("--tls-cert and --tls-key (FLASH_SERVER_TLS_CERT, FLASH_SERVER_TLS_KEY) belong together.")
    for path in (settings.tls_cert, settings.tls_key):
        if path is not None and not path.is_file():
            raise BadSetting(f"{path} is not there (--tls-cert, --tls-key).")
    if settings.project is not None and not settings.project.is_dir():
        raise BadSetting(f"--project (FLASH_SERVER_PROJECT) is {str(settings.project)!r}: there is no such directory.")
    if settings.plain_networks:
        import ipaddress

        for network in settings.plain_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise BadSetting(f"--plain-networks (FLASH_SERVER_PLAIN_NETWORKS): {error}.") from error
    return settings
