"""Work in threads: the results of a plain loop, its errors, and torch's settings as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hystar_fast.nn.in_threads import map_in_threads
from hystar_fast.nn.inject import inject


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_two_items_run_at_the_same_time_in_order() -> None:
    both = threading.Barrier(2, timeout=20)

    def wait(item: int) -> int:
        both.wait()
        return item * torch.get_num_threads()

    assert map_in_threads(wait, [3, 5]) == [3 * 2, 5 * 2]
    assert torch.get_num_threads() == 4


def test_threads_share_the_gradient_mode_and_do_not_start_more() -> None:
    def modes(_: int) -> tuple[bool, bool]:
        name = threading.current_thread().name
        return torch.is_grad_enabled(), map_in_threads(lambda _: threading.current_thread().name == name, [1, 2])[1]

    with torch.no_grad():
        assert map_in_threads(modes, range(3)) == [(False, True)] * 3
    assert map_in_threads(modes, range(3)) == [(True, True)] * 3


def test_the_first_error_is_raised_and_the_threads_are_as_before() -> None:
    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        map_in_threads(fail, range(8))
    assert torch.get_num_threads() == 4


def test_a_model_that_is_injected_in_threads_equals_one_that_is_not(tmp_path: Path) -> None:
    linear = nn.Linear(24, 40)
    model = nn.Sequential(linear, nn.Linear(40, 24), linear, nn.Linear(40, 8))
    model[1] = nn.Sequential(nn.Linear(40, 24), nn.GELU())
    x = torch.randn(5, 24)
    expected = model(x)
    assert inject(model, "*", cache_dir=tmp_path) == ["0", "1.0", "2", "3"]
    assert model[0] is model[2]
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 3  # no file was being written any more
