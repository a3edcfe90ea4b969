"""The chance level of mAP@all against simulated random rankings."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.retrieval.definitions import Metric, chance_level, measure


@pytest.mark.parametrize(("relevant", "gallery"), [(1, 1), (1, 10), (3, 10), (10, 10), (40, 400), (2, 300)])
def test_the_closed_form_is_the_mean_of_random_rankings(relevant, gallery):
    generator = torch.Generator().manual_seed(relevant + gallery)
    runs = 4000
    keys = torch.rand(runs, gallery, generator=generator)
    ranks = keys.argsort(dim=1).argsort(dim=1)[:, :relevant].sort(dim=1).values + 1
    precisions = Metric.parse("mAP@all").values(ranks, torch.full((runs,), relevant), gallery)
    found, expected = precisions.mean().item(), chance_level(torch.tensor([relevant]), gallery).item()
    assert abs(found - expected) <= 4 * precisions.std().item() / runs**0.5 + 1e-12


def test_sizes_of_published_data_have_their_chance():
    assert chance_level(torch.tensor([40]), 400).item() == pytest.approx(0.113, abs=5e-4)
    assert chance_level(torch.tensor([160]), 16_000).item() == pytest.approx(0.011, abs=5e-4)


def test_a_measurement_has_the_mean_over_its_answered_queries():
    labels, gallery = torch.tensor([0, 1, 7]), torch.tensor([0, 0, 1, 2])
    found = measure(torch.eye(4)[:3], torch.eye(4), labels, gallery, [Metric.parse("mAP@all")])
    assert found.counts.tolist() == [2, 1, 0]
    assert found.chance == pytest.approx(chance_level(torch.tensor([2, 1]), 4).mean().item())
    none = measure(torch.eye(4)[:1], torch.eye(4), torch.tensor([9]), gallery, [Metric.parse("R@1")])
    assert none.chance is None


@pytest.mark.parametrize(("relevant", "found"), [([0], "0 to 0"), ([5], "5 to 5"), ([1, 9], "1 to 9")])
def test_impossible_numbers_of_relevant_items_are_refused(relevant, found):
    with pytest.raises(ValueError, match=f"relevant must be between 1 and 4, the size of the gallery, got {found}"):
        chance_level(torch.tensor(relevant), 4)
