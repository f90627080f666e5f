"""The types that type checkers see are of the objects that programs get."""

import inspect
from collections.abc import Iterator

from flashmesh.functions import signatures
from flashmesh.functions.remote import remote
from flashmesh.functions.resources import LiveServerless

resource = LiveServerless(name="signatures")


@remote(resource)
def function(x: int) -> int:
    return x


@remote(resource)
def stream(n: int) -> Iterator[int]:
    yield n


def promised(protocol: type) -> set[str]:
    """Names a protocol gives, of its own."""
    return {name for name in (*vars(protocol), *inspect.get_annotations(protocol)) if not name.startswith("_")}


def test_a_handle_has_every_way_to_call_that_its_type_promises() -> None:
    for protocol, handle in ((signatures.Function, function), (signatures.StreamingFunction, stream)):
        assert promised(protocol) == {"call", "local", "spawn", "map", "starmap"}
        for name in promised(protocol):
            assert callable(getattr(handle, name)), name


def test_a_stream_has_the_methods_its_type_promises() -> None:
    items = stream(1)
    for name in ("__aiter__", "__await__", *promised(signatures.ItemStream)):
        assert callable(getattr(items, name)), name
