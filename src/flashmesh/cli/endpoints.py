"""Endpoints of deployed environments for people: address, build, state, and a curl line per function. Mostly pure."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from flashmesh.cli.client import Refused, ServerClient, path_name

if TYPE_CHECKING:
    from flashmesh.cli.places import Place

_COLUMNS: Final = ("Resource", "Kind", "State", "Workers", "Build", "Address")
_SAMPLES: Final[Mapping[str, Any]] = {
    "str": "text",
    "int": 1,
    "float": 1.0,
    "bool": True,
    "list": [],
    "dict": {},
    "bytes": "",
}

_FILLED: Final = frozenset({"request", "websocket", "response", "backgroundtasks", "httpconnection"})
"""Parameters that a route gets from FastAPI, not from whoever calls."""


def environment_of(client: ServerClient, place: "Place") -> dict[str, Any]:
    """What serves in an environment: its build, and its endpoints with their workers. Empty for one that is not."""
    try:
        manifest = client.get("/manifest", app=place.app, env=place.environment)
    except Refused as refused:
        if refused.http_status != 404:
            raise
        manifest = {"app": place.app, "environment": place.environment, "build": None, "resources": {}}
    return described(manifest, _workers_of(client, place), caller_of(client))


def _workers_of(client: ServerClient, place: "Place") -> dict[str, Any]:
    """By endpoint id. Empty with a token that may not look at environments."""
    status, found = client.exchange("GET", f"/v1/environments?app={path_name(place.app)}")
    places = found["environments"] if status == 200 else []
    return next((one["workers"] for one in places if one["environment"] == place.environment), {})


class Caller:
    """How commands typed on this machine reach endpoints. `server` is its URL as commands know it."""

    def __init__(self, server: str, options: Sequence[str] = ()) -> None:
        self.server = server.rstrip("/")
        self.options = tuple(options)
        """What curl needs besides: shell text, with files where secrets are."""

    @property
    def local(self) -> bool:
        return is_loopback(self.server)


def caller_of(client: ServerClient) -> Caller:
    """Raises nothing; no secret is read, files and variables are named instead."""
    from flashmesh.kit.home import flash_home

    address = client.address
    if is_loopback(address.url) and address.url.startswith("http:"):
        return Caller(address.url)
    login = shlex.quote(str(flash_home() / "login.json"))
    options = []
    read = "python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])'"
    if address.anchor is not None:
        options.append(f"--cacert <({read} {login} anchor)")
    if address.source == "flash login":
        options.append(f'-H "Authorization: Bearer $({read} {login} token)"')
    elif address.token is not None:
        options.append('-H "Authorization: Bearer $FLASH_TOKEN"')
    return Caller(address.url, options)


def described(manifest: Mapping[str, Any], workers: Mapping[str, Mapping[str, int]], caller: Caller) -> dict[str, Any]:
    """The environment as one JSON document."""
    return {
        "app": manifest["app"],
        "environment": manifest["environment"],
        "build": manifest.get("build"),
        "endpoints": [
            _endpoint(name, entry, workers.get(entry.get("endpoint_id"), {}), caller)
            for name, entry in sorted(manifest["resources"].items())
        ],
    }


def _endpoint(name: str, entry: Mapping[str, Any], workers: Mapping[str, int], caller: Caller) -> dict[str, Any]:
    serves = bool(entry.get("build"))
    return {
        "resource": name,
        "endpoint": entry.get("endpoint_id"),
        "kind": "LB" if entry["is_load_balanced"] else "QB",
        "status": entry.get("status"),
        "error": entry.get("error"),
        "build": entry.get("build"),
        "url": entry.get("endpoint_url"),
        "gateway_url": entry.get("gateway_url"),
        "workers": workers.get("ready", 0),
        "running": workers.get("running", 0),
        "file": entry["file_path"],
        "deployed_at": entry.get("deployed_at"),
        "functions": [
            {"id": function["id"], "curl": curl}
            for function in entry["functions"]
            for curl in (curl_lines(entry, function, caller) if serves else [None])
        ],
    }


def curl_lines(entry: Mapping[str, Any], function: Mapping[str, Any], caller: Caller) -> list[str]:
    """A line that calls the function when it is pasted into a shell; one per public method of a class."""
    url = str(entry.get("endpoint_url") or "")
    direct = bool(url) and is_loopback(url) and caller.local
    if entry["is_load_balanced"]:
        base = url if direct else f"{caller.server}/lb/{entry['endpoint_id']}"
        schema = (entry.get("schemas") or {}).get(function["id"])
        return [_http_line(base, function, schema, () if direct else caller.options)]
    callables = list(_callables(entry))
    lines = []
    for name, parameters in _callables_of(function):
        base = url if direct else f"{caller.server}/v2/{entry['endpoint_id']}"
        middle = f"/{_shortest(name, [one for one, _ in callables])}" if len(callables) > 1 else ""
        address = f"{base}{middle}/{'run_sync' if direct else 'runsync'}"
        schema = (entry.get("schemas") or {}).get(name)
        body = json.dumps({"input": sample(parameters, schema)}, ensure_ascii=False)
        lines.append(_line("POST", address, body, () if direct else caller.options))
    return lines


def _callables(entry: Mapping[str, Any]) -> Iterable[tuple[str, Sequence[Mapping[str, Any]]]]:
    for function in entry["functions"]:
        yield from _callables_of(function)


def _callables_of(function: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Ids it is called by, with the parameters of each."""
    if not function.get("is_class"):
        return [(function["id"], function.get("parameters") or ())]
    return [
        (f"{function['id']}.{method['name']}", method.get("parameters") or ())
        for method in function.get("methods") or ()
    ]


def _shortest(name: str, names: Sequence[str]) -> str:
    """The shortest end of an id that no other one shares."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if [one for one in names if one == end or one.endswith(f".{end}")] == [name]:
            return end
    return name


def sample(parameters: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A value for each parameter that needs one: one that fits its schema, where that is known."""
    from flashmesh.worker.lb.examples import example_of

    known = (schema or {}).get("properties", {})
    definitions = (schema or {}).get("$defs", {})
    return {
        str(one["name"]): example_of(known[one["name"]], definitions)
        if one["name"] in known
        else _value(one.get("annotation"))
        for one in parameters
        if one.get("default") is None and one.get("kind", "positional") in ("positional", "keyword")
    }


def _value(annotation: Any) -> Any:
    return _SAMPLES.get(_base(annotation), "text" if annotation is None else {})


def _base(annotation: Any) -> str:
    """`list` of `list[int] | None`."""
    return str(annotation or "str").partition("[")[0].partition("|")[0].strip().rpartition(".")[2].lower()


def _http_line(base: str, function: Mapping[str, Any], schema: Mapping[str, Any] | None, options: Sequence[str]) -> str:
    method, path = str(function.get("http_method") or "POST"), str(function.get("http_path") or "/")
    parameters = [one for one in function.get("parameters") or () if _base(one.get("annotation")) not in _FILLED]
    inside = {one["name"] for one in parameters if f"{{{one['name']}" in path}
    for one in parameters:
        value = _value(one.get("annotation"))
        shown = value if isinstance(value, int | float | str) and value != "" else "1"
        path = path.replace(f"{{{one['name']}:path}}", str(shown)).replace(f"{{{one['name']}}}", str(shown))
    others = sample([one for one in parameters if one["name"] not in inside], schema)
    has_body = method in ("POST", "PUT", "PATCH") and bool(others)
    sent = next(iter(others.values())) if len(others) == 1 and isinstance(next(iter(others.values())), dict) else others
    body = json.dumps(sent, ensure_ascii=False) if has_body else None
    if others and not has_body:
        from urllib.parse import urlencode

        path += "?" + urlencode(others)
    return _line(method, base + path, body, options)


def _line(method: str, url: str, body: str | None, options: Sequence[str]) -> str:
    parts = ["curl"]
    if method not in ("GET", "POST") or (method == "POST" and body is None):
        parts.append(f"-X {method}")
    parts.append(shlex.quote(url))
    if body is not None:
        parts += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(body)}"]
    return " ".join([*parts, *options])


def endpoint_lines(environment: Mapping[str, Any]) -> list[str]:
    """The environment for people: a table, errors, and the curl lines."""
    from flashmesh.cli.status import columns

    endpoints = environment["endpoints"]
    if not endpoints:
        return []
    rows = [_COLUMNS, *(_row(one) for one in endpoints)]
    lines = ["", *columns(rows).splitlines()]
    lines += [f"error: {one['resource']}: {one['error']}" for one in endpoints if one["error"]]
    calls = [call for one in endpoints for call in one["functions"] if call["curl"]]
    if calls:
        lines.append("")
        for call in calls:
            lines += [f"# {call['id']}", call["curl"]]
    return lines


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one["resource"],
        one["kind"],
        str(one["status"]),
        str(one["workers"]),
        str(one["build"] or "-"),
        str(one["url"] or "-"),
    )


def is_loopback(url: str) -> bool:
    host = (urlsplit(url).hostname or "").lower()
    return host in ("127.0.0.1", "::1", "localhost") or host.endswith(".localhost")
