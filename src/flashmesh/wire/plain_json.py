"""JSON of plain values, as our own answers are written."""

import json
from typing import Any, Final

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # json.dumps makes one per call


def dump(value: Any) -> bytes:
    """JSON of plain values, whatever text they hold."""
    return _encode(value).encode("utf-8", "surrogatepass")
