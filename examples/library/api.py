"""The library over HTTP: what browsers and other programs call."""

import json
from collections.abc import AsyncIterator

from embeddings import embed
from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from search import index, search
from texts import passages, titles

from flashmesh import CpuLiveLoadBalancer, remote

api = CpuLiveLoadBalancer(name="api")


class Pair(BaseModel):
    one: str
    other: str


@remote(api, method="GET", path="/search")
async def find(q: str, count: int = 3) -> dict:
    """GET /search?q=…"""
    return {"question": q, "found": await search(q, count)}


@remote(api, method="GET", path="/documents/{title}")
async def document(title: str) -> dict:
    """A document by its title."""
    if title not in await titles():
        raise HTTPException(404, f"There is no document {title!r}.")
    return {"title": title, "passages": await passages(title)}


@remote(api, method="POST", path="/likeness")
async def likeness(pair: Pair) -> dict:
    """How near two texts are, from 0 to 1."""
    one, other = await embed([pair.one, pair.other])
    return {"likeness": round(sum(a * b for a, b in zip(one, other, strict=True)), 3)}


@remote(api, method="GET", path="/index")
async def stream() -> StreamingResponse:
    """A line of JSON for each passage, sent as it is made."""

    async def lines() -> AsyncIterator[str]:
        async for entry in index():
            yield json.dumps(entry) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")
