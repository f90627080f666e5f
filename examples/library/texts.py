"""Work on the documents themselves: cheap, so it runs on CPU workers."""

from pathlib import Path

from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="texts", workersMax=2)

DOCUMENTS = Path(__file__).with_name("documents")  # files beside the code travel with it


@remote(cpu)
def titles() -> list[str]:
    """The documents of the library."""
    return sorted(path.stem for path in DOCUMENTS.glob("*.txt"))


@remote(cpu)
def passages(title: str) -> list[str]:
    """A document's paragraphs."""
    text = (DOCUMENTS / f"{Path(title).name}.txt").read_text()
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


@remote(cpu)
def rank(question: list[float], vectors: list[list[float]], count: int = 3) -> list[tuple[int, float]]:
    """The `count` vectors nearest to the question's: place and likeness, the best first."""
    likeness = [sum(a * b for a, b in zip(question, vector, strict=True)) for vector in vectors]
    best = sorted(range(len(vectors)), key=lambda place: -likeness[place])[:count]
    return [(place, round(likeness[place], 3)) for place in best]
