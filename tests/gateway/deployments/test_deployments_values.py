"""Values of environment variables are told apart without being told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.deployments.values import KEY_FILE, ValuesKey, chosen

VALUES = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4)
KEY = ValuesKey(bytes(32))


@given(VALUES, VALUES)
def test_equal_values_have_equal_hashes_and_others_have_others(one: dict[str, str], other: dict[str, str]) -> None:
    """Whatever their order, and however names and values run together."""
    assert (KEY.hash(one) == KEY.hash(other)) == (one == other)
    assert KEY.hash(dict(reversed(one.items()))) == KEY.hash(one)


def test_another_server_has_other_hashes(tmp_path: Path) -> None:
    """A guessed value cannot be checked against a manifest. The key is this user's only, and stays."""
    key = ValuesKey.open(tmp_path)
    assert key.hash({"TOKEN": "1234"}) != KEY.hash({"TOKEN": "1234"})
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert ValuesKey.open(tmp_path).hash({"TOKEN": "1234"}) == key.hash({"TOKEN": "1234"})


@pytest.mark.parametrize("content", ["", "zz", "00ff"])
def test_a_damaged_key_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(FlashmeshError, match="backup"):
        ValuesKey.open(tmp_path)


def test_values_that_came_with_a_deploy_count_else_those_that_are_kept() -> None:
    assert chosen(["A"], {"A": "1", "FROM_FILE": "2"}, {"A": "0"}) == {"A": "1", "FROM_FILE": "2"}
    assert chosen(["A", "NEW"], None, {"A": "0", "OLD": "x"}) == {"A": "0"}
