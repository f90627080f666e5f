"""`.local` runs a function's body here, without a worker. Run with `python -m pytest` in the folder above."""

from embeddings import SIZE, embed, embed_each
from texts import passages, rank, titles


def test_every_document_has_passages() -> None:
    assert titles.local() == ["apples", "bicycles", "bread", "tides"]
    assert all(len(passages.local(title)) == 3 for title in titles.local())


def test_a_passage_is_likest_to_itself() -> None:
    texts = [text for title in titles.local() for text in passages.local(title)]
    vectors = embed.local(texts)
    assert {len(vector) for vector in vectors} == {SIZE}
    assert [rank.local(vector, vectors, 1)[0][0] for vector in vectors] == list(range(len(texts)))


def test_a_question_finds_its_document() -> None:
    found = [(title, text) for title in titles.local() for text in passages.local(title)]
    vectors = embed.local([text for _, text in found])
    for question, title in [
        ("when are apples ripe?", "apples"),
        ("how do I mend a puncture?", "bicycles"),
        ("why does my chain squeak?", "bicycles"),
        ("how hot must the oven be?", "bread"),
        ("why are the tides high at full moon?", "tides"),
    ]:
        place, likeness = rank.local(embed.local([question])[0], vectors, 1)[0]
        assert found[place][0] == title, question
        assert 0 < likeness < 1


def test_one_by_one_the_vectors_are_the_same() -> None:
    texts = ["high tide", "low tide"]
    assert list(embed_each.local(texts)) == embed.local(texts)
