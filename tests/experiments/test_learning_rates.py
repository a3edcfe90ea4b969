"""The grids of learning rates, and the committed trials that selected the demo's rates."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

from hystar_fast.experiments.learning_rates import (
    DEMO_RATES,
    DEMO_STEPS,
    LARGE_GRID,
    TINY_GRID,
    groups_at_edge,
    untuned_rates,
)
from hystar_fast.methods.suite import DEMO_TRAINED, FITTED, METHODS, UNTRAINED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("grid", "settings"), [(TINY_GRID, 3), (LARGE_GRID, 5)])
def test_every_trained_method_has_the_same_number_of_trials(grid, settings):
    assert set(grid) == {*METHODS, "dynamic"} - {*UNTRAINED, *FITTED}
    assert {len(trials) for trials in grid.values()} == {settings}


def test_the_rates_of_the_demo_are_those_chosen_by_the_committed_trials():
    found = json.loads((ROOT / "docs/results/demo_tuning.json").read_text(encoding="utf-8"))
    assert found["chosen"] == DEMO_RATES and set(DEMO_RATES) == set(DEMO_TRAINED)
    assert (found["steps"], found["seeds"]) == (DEMO_STEPS, [0, 1, 2])
    means = {name: defaultdict(list) for name in DEMO_TRAINED}
    for trial in found["trials"]:
        means[trial["method"]][json.dumps(trial["learning_rates"])].append(trial["recall"]["headline"]["R@1"]["value"])
    assert {len(values) for tried in means.values() for values in tried.values()} == {3}, "three seeds a setting"
    assert {len(tried) for tried in means.values()} == {5}, "one budget for every method"
    for name, tried in means.items():
        assert max(tried, key=lambda rates: fmean(tried[rates])) == json.dumps(DEMO_RATES[name])


def test_untuned_rates_are_the_demos_the_papers_or_the_middle_of_the_grid():
    assert untuned_rates("tiny")["hystar"] == (DEMO_RATES["hystar"], "the demo's")
    assert untuned_rates("tiny")["vpt"] == ({"vpt": 3e-2}, "the middle of the grid, not tuned")
    large = untuned_rates("open_clip:ViT-L-14")
    assert large["hystar"] == ({"static": 1e-3, "dynamic": 1e-5}, "the paper's") and large["lora"][0] == {"lora": 3e-4}
    assert set(large) == set(METHODS) - {*UNTRAINED, *FITTED}


def test_a_rate_at_the_edge_of_its_grid_is_reported():
    grid = LARGE_GRID["hystar"]
    assert groups_at_edge({"static": 3e-4, "dynamic": 1e-5}, grid) == ["static"]
    assert groups_at_edge({"static": 1e-3, "dynamic": 3e-5}, grid) == ["dynamic"]
    assert groups_at_edge({"static": 1e-3, "dynamic": 1e-5}, grid) == []
    assert groups_at_edge({"static": 6e-2}, [{"static": 6e-2}, {"static": 6e-2}]) == []
