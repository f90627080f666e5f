"""A clock for ages."""

import time

import pytest

from flashmesh.kit.clock import SteadyClock


def test_a_steady_clock_begins_with_the_machines_and_is_not_set_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    real = time.time
    assert clock() == pytest.approx(real(), abs=1)
    monkeypatch.setattr(time, "time", lambda: real() + 30 * 3600)
    first, second = clock(), clock()
    assert first == pytest.approx(real(), abs=1)
    assert second >= first
