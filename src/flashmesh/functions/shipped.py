"""Functions whose source travels: declared again, in a plain form, in the module that was made of it."""

from __future__ import annotations

from flashmesh.functions.remote import remote
from flashmesh.functions.resources import CpuLiveServerless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def declare_again(target: Any, name: str, module: str) -> Any:
    """The decorated form of a function or class that stands in `module` under `name`.

    Only its id matters there: the session knows how it was declared, and which endpoint serves it.
    """
    target.__module__, target.__qualname__ = module, name
    return remote(CpuLiveServerless(name=name))(target)
