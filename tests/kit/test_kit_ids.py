import time
import uuid

from flashmesh.kit.ids import new_execution_id


def test_execution_ids_are_different_uuids_that_begin_with_their_moment() -> None:
    """Version 7: an index of them grows at its end."""
    before = time.time_ns() // 1_000_000
    made = [new_execution_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == len(made)
    for text in made:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
        assert before <= parsed.int >> 80 <= after
