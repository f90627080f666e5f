"""HTTP routes. Their bodies run in the server; calls of other functions go to those functions' workers."""

from pydantic import BaseModel
from workers.gpu import squares

from flashmesh import CpuLiveLoadBalancer, remote

api = CpuLiveLoadBalancer(name="api")


class Batch(BaseModel):
    values: list[float]


@remote(api, method="POST", path="/norm")
async def norm(batch: Batch) -> dict:
    """The Euclidean norm; the squaring happens in another process."""
    return {"norm": sum(await squares(batch.values)) ** 0.5}


@remote(api, method="GET", path="/greet/{name}")
async def greet(name: str, shout: bool = False) -> dict:
    """Path and query parameters are the function's arguments."""
    text = f"Hello, {name}!"
    return {"greeting": text.upper() if shout else text}
