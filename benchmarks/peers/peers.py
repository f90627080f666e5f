"""Which peers, what they need, how they start, and where they answer."""

import dataclasses
from typing import Final

BODY: Final = b'{"input":{"a":1,"text":"' + b"x" * 80 + b'"}}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """`command`: arguments after the environment's own `python`; `{port}` is replaced.

    A peer with a `path` answers HTTP there; one without measures itself and prints JSON lines.
    """

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    path: str = ""
    body: bytes = BODY
    needs: str = ""
    """A program that must be on PATH."""


PEERS: Final = (
    Peer(
        name="runpod SDK, local server",
        requirements=("runpod",),
        command=("runpod_app.py", "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", "{port}"),
        path="/runsync",
    ),
    Peer(name="LitServe", requirements=("litserve",), command=("litserve_app.py", "{port}"), path="/predict"),
    Peer(
        name="BentoML",
        requirements=("bentoml",),
        command=("-m", "bentoml", "serve", "bentoml_app:Echo", "--host", "127.0.0.1", "--port", "{port}"),
        path="/echo",
    ),
    Peer(name="Ray Serve", requirements=("ray[serve]",), command=("ray_app.py", "{port}"), path="/"),
    Peer(
        name="Celery + Redis",
        requirements=("celery", "redis", "packaging"),  # kombu imports it and does not always name it
        command=("celery_app.py",),
        needs="redis-server",
    ),
    Peer(name="Dask", requirements=("distributed",), command=("dask_app.py",)),
)
