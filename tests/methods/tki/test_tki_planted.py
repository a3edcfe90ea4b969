"""The mechanism of TKI where it can be known: styles in a planted subspace, and a control where it cannot work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hystar_fast.methods.tki.aggregation import aggregation_loss
from hystar_fast.methods.tki.tki_head import TKIHead
from hystar_fast.methods.tki.whitening_head import WhiteningHead
from hystar_fast.retrieval.definitions import Metric, measure
from tests.support.planted_styles import Planted, planted

MAP = Metric.parse("mAP@all")
SEEDS = (0, 1, 2)


def average_precision(vectors: Tensor, labels: Tensor) -> float:
    """Return mAP@all of each of two domains in the other."""
    both = [measure(vectors[a], vectors[1 - a], labels, labels, [MAP]).values[MAP].mean().item() for a in (0, 1)]
    return sum(both) / 2


def gain(found: Planted, seed: int, start: str) -> float:
    """Train h on the texts, and return how much better the pictures are found."""
    torch.manual_seed(seed)
    head = TKIHead(64, start=start)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.005)
    for _ in range(150):
        optimizer.zero_grad()
        aggregation_loss(head(found.texts), 0.1).backward()
        optimizer.step()
    with torch.no_grad():
        return average_precision(head(found.pictures), found.labels) - average_precision(found.pictures, found.labels)


def test_the_closed_form_removes_planted_styles_too() -> None:
    means = {}
    for is_control in (False, True):
        gains = []
        for seed in SEEDS:
            found = planted(seed, is_control=is_control)
            head = WhiteningHead(64, rho=0.1)
            head.fit(found.texts)
            before, after = found.pictures, head(found.pictures)
            gains.append(average_precision(after, found.labels) - average_precision(before, found.labels))
        means[is_control] = sum(gains) / len(gains)
    assert means[False] >= 0.5 and means[True] <= 0.1, means


@pytest.mark.slow
@pytest.mark.parametrize("start", ["random", "clip"])
def test_domains_that_texts_point_at_are_removed_and_others_are_not(start: str) -> None:
    gains = {
        is_control: [gain(planted(seed, is_control=is_control), seed, start) for seed in SEEDS]
        for is_control in (False, True)
    }
    means = {is_control: sum(values) / len(values) for is_control, values in gains.items()}
    assert means[False] >= 0.5 and means[True] <= 0.1, gains
