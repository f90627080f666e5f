"""Only what a change can reach is replaced."""

from flashmesh.dev.session.reload import Changes, Snapshot, compare, in_words

BEFORE = Snapshot({"a": "1", "b": "1", "c": "1"}, "server")


def test_templates_of_changed_resources_alone_are_replaced() -> None:
    after = Snapshot({"a": "1", "b": "2", "d": "1"}, "server")
    assert compare(BEFORE, after) == Changes(added=("d",), updated=("b",), removed=("c",), server=False)


def test_an_edit_that_changes_nothing_replaces_nothing() -> None:
    assert not compare(BEFORE, Snapshot(dict(BEFORE.builds), "server"))


def test_the_server_child_is_replaced_for_its_own_sources_alone() -> None:
    assert compare(BEFORE, Snapshot(BEFORE.builds, "other")) == Changes(server=True)


def test_what_was_reloaded_is_said() -> None:
    changes = Changes(updated=("gpu_worker",), server=True)
    assert in_words(changes, paths=frozenset({"gpu_worker.py"})) == "gpu_worker.py: reloaded gpu_worker; server"
    many = frozenset({"a.py", "b.py", "c.py", "d.py"})
    assert in_words(Changes(), paths=many) == "a.py, b.py, c.py and 1 more: nothing to reload"
