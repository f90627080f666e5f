import os
import time
import uuid

from flashmesh.gateway.identities import BATCH, Identities, new_execution_id


def test_ids_are_uuids_that_begin_with_their_moment():
    identities = Identities()
    before = time.time_ns() // 1_000_000
    made = [identities.new() for _ in range(3 * BATCH + 1)]
    assert len(set(made)) == len(made)
    assert made[:BATCH] == sorted(made[:BATCH])
    for text in made:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
        assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000


def test_a_forked_child_makes_other_ids_than_its_parent():
    new_execution_id()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, new_execution_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read().decode() != new_execution_id()
