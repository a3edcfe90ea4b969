"""The zoo of the campaign: what it passes, what it refuses, and that it notices faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from tests.campaign import zoo
from tests.campaign.rows import Row


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.tied = nn.Linear(4, 6), nn.Linear(4, 4), nn.Linear(6, 4)
        self.last = nn.Linear(6, 4, bias=False)
        self.last.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.first(x).relu()) + self.last(x.new_ones(6))


def small() -> tuple[nn.Module, dict[str, Any]]:
    return Small(), {"x": torch.randn(3, 4)}


def test_a_row_counts_what_is_replaced_and_refused() -> None:
    note = "2 layers; refused 2 x its weight is shared by last and tied; copy it first"
    assert zoo.run_case("small", small) == Row("zoo", "small", "passed", note)
    assert zoo.run_case("none", lambda: (nn.ReLU(), {"input": torch.randn(3)})).outcome == "refused"


@pytest.mark.parametrize(
    ("part", "change", "fault"),
    [
        ("forward", lambda self, x: nn.functional.linear(x, self.weight) + self.bias + 1e-2, "zero offset: relative"),
        ("forward", lambda self, x: nn.functional.linear(x, self.weight.detach(), self.bias), "gradient: first has no"),
        ("_materialise", lambda self, delta_s=None: (self.u * self.s) @ self.vh, "merge: relative error"),
        ("state_dict", lambda self, *_, **__: {}, "RuntimeError: Error(s) in loading state_dict"),
    ],
)
def test_faults_are_rows(part: str, change: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastSVDLinear, part, change)
    row = zoo.run_case("small", small)
    assert row.outcome == "failed" and row.note.startswith(fault), row.note


def test_a_share_is_the_same_part_of_all_libraries_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "run_case", lambda name, _: Row("zoo", name, "passed", ""))
    every, tenth = zoo.zoo(), zoo.zoo(0.1)
    assert len(every) > 100 and len({row.case for row in every}) == len(every)
    assert tenth == zoo.zoo(0.1) and len(tenth) == len(every) // 10
    assert {row.case.split()[0] for row in tenth} == {"timm", "torchvision", "open_clip", "transformers"}
