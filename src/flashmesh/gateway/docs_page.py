"""The documentation page: Swagger UI from files of this installation, so that it works without a network."""

import importlib.util
from functools import cache
from html import escape
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import FlashmeshError

ASSETS: Final = "/docs/assets/"
KINDS: Final = {
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "swagger-ui.css": b"text/css; charset=utf-8",
    "favicon.png": b"image/png",
}
"""Files below ASSETS, and their media types."""


def docs_page(title: str) -> bytes:
    """The page that shows `/openapi.json`."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" type="image/png" href="{ASSETS}favicon.png">
<link rel="stylesheet" href="{ASSETS}swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{ASSETS}swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  tryItOutEnabled: true,
  validatorUrl: null,
  persistAuthorization: true
}})
</script>
</body>
</html>
""".encode()


@cache
def asset(name: str) -> bytes:
    """One of Swagger UI's files, out of the package that carries it (which is not imported for it)."""
    spec = importlib.util.find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise FlashmeshError("The docs page needs the package fastapi-offline. Install flashmesh again.")
    return (Path(spec.origin).parent / "static" / name).read_bytes()
