"""The OpenAPI 3.1 document of a dev server: queue routes from what is known of their functions, HTTP routes as FastAPI
describes them. Pure."""

import ast
import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from flashmesh import __version__
from flashmesh.dev.server.route_book import QueueRoute, RouteBook, Unavailable
from flashmesh.worker.lb.examples import example_of, first_line
from flashmesh.worker.lb.route import HttpRoute

_TYPES: Final[Mapping[str, dict[str, Any]]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
    "list": {"type": "array", "items": {}},
    "tuple": {"type": "array", "items": {}},
    "set": {"type": "array", "items": {}, "uniqueItems": True},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "datetime": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
    "UUID": {"type": "string", "format": "uuid"},
    "None": {"type": "null"},
    "Any": {},
    "object": {},
}
Described = Mapping[str, Mapping[str, Any]]
"""Per callable id what its import told: `doc`, `parameters` and `returns` (JSON schemas)."""


def document(
    book: RouteBook, *, title: str, described: Described, applications: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The whole document.

    Args:
        described: what is known from imports, by callable id; the rest is from syntax.
        applications: the OpenAPI documents of the FastAPI applications that are up, by file.
    """
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    tags: dict[str, str] = {}
    for route in book.queue:
        tag = f"{route.file} [QB]"
        tags.setdefault(tag, f"Runs on workers of `{route.resource}`.")
        known = described.get(route.function, {})
        paths |= queue_paths(route, known)
    for http in book.http:
        tags.setdefault(f"{http.file} [LB]", f"Runs in this server; resource `{http.resource}`.")
        if http.file not in applications:
            paths.setdefault(http.path, {})[http.method.lower()] = http_operation(http)
    for application in applications.values():
        _merge(paths, schemas, application)
    for fault in book.unavailable:
        tags.setdefault(f"{fault.file} [unavailable]", _fault_text(fault))
    ours: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "description": _about(book.unavailable)},
        "paths": {path: paths[path] for path in paths} | _health(),
        "tags": [{"name": name, "description": text} for name, text in tags.items()]
        + [{"name": "health", "description": "Whether the server is up."}],
    }
    schemas = _hoist(ours, schemas)
    schemas |= _OUR_SCHEMAS
    ours["components"] = {"schemas": schemas}
    return ours


def queue_paths(route: QueueRoute, known: Mapping[str, Any]) -> dict[str, Any]:
    """The paths of one callable."""
    tag = f"{route.file} [QB]"
    body = request_schema(known.get("parameters") or syntax_schema(route.parameters))
    doc = known.get("doc") or route.doc or f"`{route.function}`"
    output = known.get("returns") or {}
    paths: dict[str, Any] = {}
    verbs = {
        "run_sync": "Call and wait for the result",
        "run": "Call; answers with the result if it is quick, else with an id",
    }
    for verb, summary in verbs.items():
        paths[f"{route.prefix}/{verb}"] = {
            "post": {
                "tags": [tag],
                "operationId": _operation(route.function, verb),
                "summary": f"{route.name}: {summary}",
                "description": doc,
                "requestBody": {"required": bool(route.parameters), "content": {"application/json": body}},
                "responses": _call_responses(output),
            }
        }
    identity = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    looks = {
        "status": ("get", "Status and result of a call"),
        "cancel": ("post", "Stop a call"),
    }
    if route.is_generator or known.get("is_generator"):
        looks["stream"] = ("get", "What it has yielded since the last time")
    for verb, (method, summary) in looks.items():
        paths[f"{route.prefix}/{verb}/{{id}}"] = {
            method: {
                "tags": [tag],
                "operationId": _operation(route.function, verb),
                "summary": f"{route.name}: {summary}",
                "parameters": [identity],
                "responses": {
                    "200": _json("The call", {"$ref": "#/components/schemas/Execution"}),
                    "404": _json("No such call", {"$ref": "#/components/schemas/Failure"}),
                },
            }
        }
    return paths


def request_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The media type object of `{"input": {…}}`, with an example that can be sent as it is."""
    definitions = dict(parameters.get("$defs", {}))
    inner = {key: value for key, value in parameters.items() if key != "$defs"}
    schema: dict[str, Any] = {"type": "object", "properties": {"input": inner}, "required": ["input"]}
    if definitions:
        schema["$defs"] = definitions
    return {"schema": schema, "example": {"input": example_of(inner, definitions)}}


def syntax_schema(parameters: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An object schema from source text: names, simple annotations, literal defaults."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in parameters:
        if parameter.get("kind", "").startswith("var_"):
            continue
        schema = annotation_schema(parameter.get("annotation"))
        if "default" in parameter:
            schema = {**schema, **_literal_default(parameter["default"])}
        else:
            required.append(parameter["name"])
        properties[parameter["name"]] = schema
    made: dict[str, Any] = {"type": "object", "properties": properties}
    return made | ({"required": required} if required else {})


def annotation_schema(annotation: str | None) -> dict[str, Any]:
    """What can be said of an annotation without importing anything; {} when nothing can."""
    if not annotation:
        return {}
    try:
        return _schema_of(ast.parse(annotation.strip("\"'"), mode="eval").body)
    except SyntaxError:
        return {}


def _schema_of(node: ast.expr) -> dict[str, Any]:
    if isinstance(node, ast.Constant):
        return dict(_TYPES["None"]) if node.value is None else {}
    if isinstance(node, ast.Name | ast.Attribute):
        return dict(_TYPES.get(node.id if isinstance(node, ast.Name) else node.attr, {}))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _any_of([_schema_of(node.left), _schema_of(node.right)])
    if not isinstance(node, ast.Subscript):
        return {}
    name = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
    arguments = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name in ("list", "List", "Sequence", "Iterable", "set", "Set"):
        return {"type": "array", "items": _schema_of(arguments[0])}
    if name in ("dict", "Dict", "Mapping"):
        return {"type": "object", "additionalProperties": _schema_of(arguments[-1]) or True}
    if name == "Optional":
        return _any_of([_schema_of(arguments[0]), {"type": "null"}])
    if name == "Union":
        return _any_of([_schema_of(argument) for argument in arguments])
    if name == "Literal":
        return {"enum": [argument.value for argument in arguments if isinstance(argument, ast.Constant)]}
    if name == "Annotated":
        return _schema_of(arguments[0])
    return dict(_TYPES.get(name.lower(), {}))


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return {} if any(not schema for schema in schemas) else {"anyOf": schemas}


def _literal_default(source: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(source)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError):
        return {}
    return {"default": value}


def http_operation(route: HttpRoute) -> dict[str, Any]:
    """A declared HTTP route whose file is not imported (yet): what syntax tells."""
    in_path = set(_path_names(route.path))
    parameters = [
        {
            "name": parameter["name"],
            "in": "path",
            "required": True,
            "schema": annotation_schema(parameter.get("annotation")),
        }
        for parameter in route.parameters
        if parameter["name"] in in_path
    ]
    named = {parameter["name"] for parameter in parameters}
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in in_path - named
    ]
    operation: dict[str, Any] = {
        "tags": [f"{route.file} [LB]"],
        "operationId": f"{route.method.lower()}{route.path}",
        "summary": first_line(route.doc) or route.function,
        "description": route.doc or f"`{route.function}`",
        "parameters": parameters,
        "responses": {"200": {"description": "What the function returns"}},
    }
    rest = [parameter for parameter in route.parameters if parameter["name"] not in in_path]
    if rest and route.method not in ("GET", "HEAD", "DELETE"):
        schema = syntax_schema(rest)
        operation["requestBody"] = {
            "content": {"application/json": {"schema": schema, "example": example_of(schema, {})}}
        }
    return operation


def _path_names(path: str) -> list[str]:
    return [piece.split("}")[0].split(":")[0] for piece in path.split("{")[1:]]


def _merge(paths: dict[str, Any], schemas: dict[str, Any], described: Mapping[str, Any]) -> None:
    described = copy.deepcopy(dict(described))
    for path, item in described.get("paths", {}).items():
        paths.setdefault(path, {}).update(item)
    schemas.update(described.get("components", {}).get("schemas", {}))


def _hoist(ours: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Move every schema's own `$defs` to the components, where the document's references can find them.

    Two definitions of one name that differ get different names.
    """
    collected = dict(schemas)

    def place(name: str, definition: Any) -> str:
        candidate, number = name, 2
        while (candidate in collected and collected[candidate] != definition) or candidate in _OUR_SCHEMAS:
            candidate, number = f"{name}{number}", number + 1
        collected[candidate] = definition
        return candidate

    def visit(node: Any, names: Mapping[str, str]) -> Any:
        if isinstance(node, list):
            return [visit(item, names) for item in node]
        if not isinstance(node, dict):
            return node
        definitions = node.pop("$defs", None)
        if isinstance(definitions, dict):
            names = dict(names)
            for name, definition in definitions.items():
                names[name] = place(name, definition)
            for name in definitions:
                collected[names[name]] = visit(definitions[name], names)
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/$defs/"):
            target = reference.rpartition("/")[2]
            node["$ref"] = f"#/components/schemas/{names.get(target, target)}"
        for key, value in node.items():
            node[key] = visit(value, names)
        return node

    visit(ours, {})
    return collected


def _call_responses(output: Mapping[str, Any]) -> dict[str, Any]:
    failure = {"$ref": "#/components/schemas/Failure"}
    inner = {key: value for key, value in output.items() if key != "$defs"}
    completed: dict[str, Any] = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "status": {"type": "string"}, "output": inner},
        "required": ["id", "status"],
    }
    if "$defs" in output:
        completed["$defs"] = output["$defs"]
    return {
        "200": _json("COMPLETED with the output, or IN_QUEUE or IN_PROGRESS with the id", completed),
        "400": _json("The body is not JSON, or names no function", failure),
        "413": _json("The body is too large", failure),
        "422": _json("The arguments do not fit", failure),
        "429": _json("The queue is full", failure),
        "500": _json("The function raised", failure),
        "503": _json("The function cannot be served now", failure),
        "504": _json("The function ran longer than its limit", failure),
    }


def _json(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(function: str, verb: str) -> str:
    return f"{function}.{verb}"


def _health() -> dict[str, Any]:
    paths = {
        "/": "This server",
        "/ping": "Whether it is up",
        "/healthz": "Whether it is up",
        "/readyz": "Whether it can take calls",
    }
    return {
        path: {
            "get": {
                "tags": ["health"],
                "operationId": "get" + (path if path != "/" else "_root"),
                "summary": summary,
                "responses": {"200": _json("Yes", {"type": "object"})},
            }
        }
        for path, summary in paths.items()
    }


def _about(faults: Iterable[Unavailable]) -> str:
    lines = ["Generated by `flash run`. Queue routes run on workers, the others in this server."]
    lines += [f"\n\n**Unavailable:** {_fault_text(fault)}" for fault in faults]
    return "".join(lines)


def _fault_text(fault: Unavailable) -> str:
    place = fault.file if fault.line is None else f"{fault.file}, line {fault.line}"
    return f"{place}: {fault.reason}"


_OUR_SCHEMAS: Final[dict[str, Any]] = {
    "Execution": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "status": {
                "type": "string",
                "enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"],
            },
            "output": {},
            "error": {"type": "string"},
            "delayTime": {"type": "integer", "description": "milliseconds in the queue"},
            "executionTime": {"type": "integer", "description": "milliseconds of running"},
        },
        "required": ["status"],
    },
    "Failure": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "status": {"type": "string"},
            "error": {"type": "string"},
            "error_type": {"type": "string"},
            "code": {"type": "string"},
            "field": {"type": "string"},
            "traceback": {"type": "string"},
        },
        "required": ["error"],
    },
}
