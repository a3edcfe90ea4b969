"""Work ahead of the caller: in order, while it works itself, and never further than the window."""

from __future__ import annotations

import threading

import pytest

from hystar_fast.data.read_ahead import read_ahead


def test_results_keep_the_order_of_the_items():
    assert list(read_ahead(lambda x: x * x, range(100), window=7)) == [x * x for x in range(100)]
    assert list(read_ahead(str, [], window=1)) == []


def test_the_next_items_are_done_while_the_caller_works():
    begun = [threading.Event() for _ in range(5)]
    results = read_ahead(lambda x: begun[x].set() or x, range(5), window=3)
    assert next(results) == 0
    assert begun[1].wait(10) and begun[2].wait(10), "they did not begin without being asked for"
    assert not begun[4].is_set()
    assert list(results) == [1, 2, 3, 4]


def test_an_error_comes_when_its_result_is_due_and_ends_the_work():
    def fail(x: int) -> int:
        if x == 3:
            raise OSError("three")
        return x

    found = []
    with pytest.raises(OSError, match="three"):
        for result in read_ahead(fail, range(1000), window=2):
            found.append(result)
    assert found == [0, 1, 2]


def test_a_window_must_hold_something():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        list(read_ahead(str, [1], window=0))
