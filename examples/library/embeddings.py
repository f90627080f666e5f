"""Texts as vectors: the work a GPU is for. Where there is none it runs on the CPU, which is said once.

The vectors count words and their pieces. A model would stand in the same place: load it at the top of the file or in
a class, and each worker has it once.
"""

import re
import zlib
from collections.abc import Iterator

from flashmesh import GpuGroup, LiveServerless, remote

gpu = LiveServerless(name="embeddings", gpus=[GpuGroup.ANY], workersMax=2)

SIZE = 512


@remote(gpu)
def embed(texts: list[str]) -> list[list[float]]:
    """A vector of length 1 for each text."""
    return unit([counted(text) for text in texts])


@remote(gpu)
def embed_each(texts: list[str]) -> Iterator[list[float]]:
    """The same one by one: a caller has the first vector while the second is made."""
    for text in texts:
        yield from unit([counted(text)])


def counted(text: str) -> list[float]:
    """How often each feature of a text occurs, by the feature's hash."""
    row = [0.0] * SIZE
    for word in re.findall(r"[a-z]+", text.lower()):
        if len(word) > 3:  # "the", "how" and "are" say little
            pieces = [word[start : start + 4] for start in range(len(word) - 3)]
            for feature in [f"<{word}>", *pieces]:
                row[zlib.crc32(feature.encode()) % SIZE] += 1.0 / len(pieces)
    return row


def unit(rows: list[list[float]]) -> list[list[float]]:
    """Rows scaled to length 1: on the GPU where torch is installed and sees one, else in plain Python."""
    try:
        import torch
    except ImportError:
        torch = None
    if torch is not None and torch.cuda.is_available():
        return torch.nn.functional.normalize(torch.tensor(rows, device="cuda")).tolist()
    lengths = [sum(value * value for value in row) ** 0.5 or 1.0 for row in rows]
    return [[value / length for value in row] for row, length in zip(rows, lengths, strict=True)]
