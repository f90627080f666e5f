"""The pipeline: documents are cut on CPU workers, become vectors on a GPU, and are ranked on CPU workers again."""

import asyncio
from collections.abc import AsyncIterator

from embeddings import embed, embed_each
from texts import passages, rank, titles

from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="search", workersMax=2)


@remote(cpu)
async def search(question: str, count: int = 3) -> list[dict]:
    """The passages that answer a question best."""
    found = await library()
    asked, vectors = await asyncio.gather(embed([question]), embed([text for _, text in found]))
    best = await rank(asked[0], vectors, count)
    return [{"title": found[place][0], "likeness": likeness, "text": found[place][1]} for place, likeness in best]


@remote(cpu)
async def index() -> AsyncIterator[dict]:
    """Every passage with the first numbers of its vector, each as soon as the GPU endpoint has made it."""
    found = await library()
    place = 0
    async for vector in embed_each([text for _, text in found]):
        title, text = found[place]
        place += 1
        yield {"title": title, "words": len(text.split()), "features": sum(value != 0 for value in vector)}


async def library() -> list[tuple[str, str]]:
    """Title and text of every passage. The documents are read side by side."""
    names = await titles()
    texts = await asyncio.gather(*(passages(name) for name in names))
    return [(name, text) for name, pieces in zip(names, texts, strict=True) for text in pieces]
