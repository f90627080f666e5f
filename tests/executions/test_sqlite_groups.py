"""How a group becomes statements: all of its rows, in order, in as few as SQLite takes."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from test_sqlite_durability import durable, new, on_a_loop, opened, rows, succeed

from flashmesh.executions.sqlite.rows import FINAL, INSERT_SQL
from flashmesh.executions.sqlite.writer import _steps

LEAST_VARIABLES = 999
"""What any SQLite takes in one statement."""


@given(st.integers(0, 300), st.sampled_from([1, len(FINAL)]))
def test_the_statements_of_a_group_hold_its_rows_in_order(count: int, columns: int) -> None:
    """Those of up to 32 calls are one statement, and each more takes another 32 or 64."""
    many = [tuple(range(number, number + columns)) for number in range(count)]
    steps = list(_steps(INSERT_SQL, many))
    assert [value for _, values in steps for value in values] == [value for row in many for value in row]
    assert all(len(values) <= LEAST_VARIABLES and sql.count("?") == len(values) for sql, values in steps)
    assert len(steps) <= (count + 31) // 32


@on_a_loop
async def test_groups_of_every_size_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "executions.db"
    with opened(path) as store:
        names = []
        for size in (1, 2, 31, 32, 33, 63, 64, 65, 100):
            group = [new(f"e{size}-{number}") for number in range(size)]
            for execution in group:
                store.create(execution)
            assert await durable(store) is None
            for execution in group[: size // 2]:
                succeed(store, execution)
            names += [(execution.id, str(execution.status)) for execution in group]
        assert await durable(store) is None
        assert rows(path, "SELECT id, status FROM executions ORDER BY row") == names


@on_a_loop
async def test_calls_that_come_together_are_accepted_by_one_statement(tmp_path: Path) -> None:
    """Which is a transaction of its own, and nothing is looked for that has to go when nothing has."""
    with opened(tmp_path / "executions.db") as store:
        said: list[str] = []
        store.database.writer._connection.set_trace_callback(said.append)
        for number in range(20):
            store.create(new(f"e{number}"))
        assert await durable(store) is None
        assert [statement.partition(" ")[0] for statement in said] == ["INSERT"]
