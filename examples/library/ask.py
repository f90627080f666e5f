"""python ask.py "how often should I water?": calls what is deployed, else workers of its own."""

import asyncio
import sys

from search import search


async def main(question: str) -> None:
    for found in await search(question, 2):
        print(f"{found['title']} ({found['likeness']}): {found['text'][:70]}…")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "when are apples picked?"))
