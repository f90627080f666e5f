"""The files of an artifact that start an endpoint: `python handlers/handler_<resource>.py`, in any image.

Each is small and says by itself what it starts. It imports the resource's module by its dotted path, as every worker
does, and serves the functions that the manifest lists; it has no route that runs code it is sent.
"""

from collections.abc import Mapping
from typing import Any

from flashmesh.project.model import Manifest

_TEXT = '''"""Starts the endpoint {name}. Written by `flash build`: change {file}, not this.

    python {handler}

It imports {modules} and answers on $PORT (8000 without it); its packages must be installed:

    {example}
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOURCE = {name!r}

if __name__ == "__main__":
    from flashmesh.worker.handler import main

    sys.exit(main(ROOT, resource=RESOURCE))
'''


def handler_files(manifest: Manifest) -> dict[str, str]:
    """Path in the artifact -> text, one for each resource."""
    return {entry["handler_file"]: handler_text(name, entry) for name, entry in manifest["resources"].items()}


def handler_text(name: str, entry: Mapping[str, Any]) -> str:
    """The handler of one resource of a manifest."""
    modules = dict.fromkeys(function["module"] for function in entry["functions"])
    return _TEXT.format(
        name=name,
        file=_harmless(entry["file_path"]),
        handler=entry["handler_file"],
        modules=_harmless(", ".join(modules)),
        example=_harmless(_route_example(entry) if entry["is_load_balanced"] else _queue_example(entry)),
    )


def _harmless(text: str) -> str:
    """As it may stand in the docstring, whatever files and routes are called."""
    return text.replace("\\", "/").replace('"' * 3, "'" * 3)


def _queue_example(entry: Mapping[str, Any]) -> str:
    callables = [
        f"{function['id']}.{method}" if function["is_class"] else function["id"]
        for function in entry["functions"]
        for method in function.get("class_methods", [""])
    ]
    place = "run_sync" if len(callables) == 1 else f"{callables[0]}/run_sync"
    return f"curl localhost:8000/{place} -H 'Content-Type: application/json' -d '{{\"input\": {{}}}}'"


def _route_example(entry: Mapping[str, Any]) -> str:
    function = entry["functions"][0]
    return f"curl -X {function['http_method']} localhost:8000{function['http_path']}"
