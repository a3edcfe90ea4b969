"""Means, deviations and paired differences over the seeds of a method."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.experiments.seeds import difference_over_seeds, spread_over_seeds
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.ranks import QueryIds, Ranks, paired_difference


def ranks_of(ranks: list[int], ids: list[int], count: int = 6) -> Ranks:
    """Return ranks of sketch queries; every second id is of an unseen category."""
    unseen = torch.tensor([True, False] * (count // 2))
    return Ranks(QueryIds(unseen, {"sketch": torch.tensor(ids)}), {"sketch": torch.tensor(ranks)})


IDS = [0, 1, 2, 4, 5]
ONE, TWO = ranks_of([0, 0, 3, 9, 0], IDS), ranks_of([0, 2, 3, 9, 0], IDS)


def test_the_mean_deviation_and_interval_over_seeds():
    found = spread_over_seeds([ONE, TWO], ("sketch",))
    assert found is not None and found.deviation is not None
    assert found.interval.value == pytest.approx((3 / 5 + 2 / 5) / 2)
    assert found.deviation == pytest.approx(((3 / 5 - 1 / 2) ** 2 + (2 / 5 - 1 / 2) ** 2) ** 0.5)
    assert found.interval == bootstrap_mean(torch.tensor([[1, 0.5, 0, torch.nan, 0, 1]]))
    alone = spread_over_seeds([ONE], ("sketch",), 4)
    assert alone is not None and alone.deviation is None and alone.interval.value == pytest.approx(4 / 5)
    unseen = spread_over_seeds([ONE], ("sketch",), unseen_only=True)
    assert unseen is not None and unseen.interval.value == pytest.approx(1 / 3)
    assert spread_over_seeds([ONE], ("text",)) is None


def test_differences_are_paired_by_query_and_by_seed():
    assert difference_over_seeds([ONE], [TWO], ("sketch",)) == paired_difference(ONE, TWO, ("sketch",))
    both = difference_over_seeds([ONE, TWO], [TWO], ("sketch",))
    assert both is not None and both.value == pytest.approx(0.1)
    assert difference_over_seeds([ONE], [ONE], ("text",)) is None
    common = difference_over_seeds({0: ONE, 1: TWO}, {1: TWO}, ("sketch",))
    assert common == difference_over_seeds([TWO], [TWO], ("sketch",)) != both
    assert difference_over_seeds({0: ONE, 1: TWO}, [TWO], ("sketch",)) == both
    with pytest.raises(ValueError, match=r"a seed in common, got \[0\] and \[1\]"):
        difference_over_seeds({0: ONE}, {1: TWO}, ("sketch",))


def test_runs_with_different_queries_are_rejected():
    one, two = ranks_of([0, 0], [0, 1]), ranks_of([0, 0], [0, 2])
    for other in (two, ranks_of([0, 0], [0, 1], 8)):
        with pytest.raises(ValueError, match="the same queries"):
            spread_over_seeds([one, other], ("sketch",))
    with pytest.raises(ValueError, match="the same queries"):
        difference_over_seeds([one], [two], ("sketch",))
    with pytest.raises(ValueError, match="at least one run"):
        spread_over_seeds([], ("sketch",))
