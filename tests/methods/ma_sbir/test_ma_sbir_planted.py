"""MA-SBIR's vectors in a planted model: what conversion repairs, what it leaves alone, and where it hurts."""

from __future__ import annotations

import pytest

from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from tests.support.planted_modalities import Planted, planted_scores

SEEDS = range(3)
OWN = MASBIRConfig(modality_init="zero")  # normal numbers of norm 22 need more steps than these


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_photos_that_look_like_sketches_no_longer_win_every_query(seed: int) -> None:
    found = planted_scores(Planted.draw(seed, skew=2.0), 1500, OWN, seed)
    assert found["learned"] >= found["original"] + 0.03 and found["mean shift"] >= 0.97


@pytest.mark.parametrize("seed", SEEDS)
def test_where_nothing_is_to_repair_nothing_is_lost(seed: int) -> None:
    found = planted_scores(Planted.draw(seed), 400, OWN, seed)
    assert min(found["learned"], found["mean shift"]) >= found["original"] - 0.01 >= 0.97


@pytest.mark.parametrize("seed", SEEDS)
def test_conversion_hurts_where_photos_vary_in_how_much_they_are_photos(seed: int) -> None:
    found = planted_scores(Planted.draw(seed, spread=1.0), 400, OWN, seed)
    assert max(found["learned"], found["mean shift"]) < found["original"] - 0.02
