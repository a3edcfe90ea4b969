"""Grids of learning rates for tuning, and the learning rates of the demo.

Every trained method has the same number of settings. `tune` selects one by the mean R@1 of the headline styles on the
validation part. The trials of the demo's rates are in docs/results/demo_tuning.json, and a test compares the two.
"""

from __future__ import annotations

Rates = dict[str, float]

DEMO_STEPS = 120
# Around the best of five settings of each method on earlier weights of this backbone.
TINY_GRID: dict[str, list[Rates]] = {
    "static": [{"static": rate} for rate in (6e-2, 0.12, 0.24)],
    "lora": [{"lora": rate} for rate in (1.5e-3, 3e-3, 6e-3)],
    "hystar": [
        {"static": static, "dynamic": dynamic} for static, dynamic in ((3e-2, 1e-3), (6e-2, 3e-3), (0.12, 1e-2))
    ],
    "dynamic": [{"dynamic": rate} for rate in (3e-4, 1e-3, 3e-3)],  # Hystar without static offsets
    **{
        name: [{name: rate} for rate in rates]
        for name, rates in {
            "ia3": (6e-2, 0.12, 0.24),
            "vpt": (1e-2, 3e-2, 0.1),
            "freestyle": (1e-5, 3e-5, 1e-4),
            "adaptformer": (6e-3, 1.2e-2, 2.4e-2),
            "ssf": (6e-3, 1.2e-2, 2.4e-2),
            "svft": (1.5e-2, 3e-2, 6e-2),
            "last_block": (1e-3, 3e-3, 1e-2),
        }.items()
    },
}

# For larger backbones: the paper's rates for Hystar (Section 4.1), and for the others values around those of their own
# papers. A best rate at the edge of its grid is reported.
LARGE_GRID: dict[str, list[Rates]] = {
    "hystar": [
        {"static": static, "dynamic": dynamic}
        for static, dynamic in ((1e-3, 1e-5), (3e-4, 1e-5), (3e-3, 1e-5), (1e-3, 3e-6), (1e-3, 3e-5))
    ],
    "dynamic": [{"dynamic": rate} for rate in (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)],
    **{
        name: [{name: rate} for rate in rates]
        for name, rates in {
            "static": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
            "lora": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
            "ia3": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "vpt": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "freestyle": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4),
            "adaptformer": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
            "ssf": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
            "svft": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
            "last_block": (1e-6, 3e-6, 1e-5, 3e-5, 1e-4),
        }.items()
    },
}

DEMO_RATES: dict[str, Rates] = {
    "static": {"static": 0.12},
    "lora": {"lora": 0.003},
    "hystar": {"static": 0.06, "dynamic": 0.003},
}


def grid_of(backbone: str) -> dict[str, list[Rates]]:
    """Return the grids for a backbone."""
    return TINY_GRID if backbone == "tiny" else LARGE_GRID


def untuned_rates(backbone: str) -> dict[str, tuple[Rates, str]]:
    """Return the learning rates of each trained method without tuning, and where they come from.

    Example:
        >>> untuned_rates("tiny")["lora"]
        ({'lora': 0.003}, "the demo's")
        >>> untuned_rates("open_clip:ViT-L-14")["hystar"]
        ({'static': 0.001, 'dynamic': 1e-05}, "the paper's")
    """
    middle = "the middle of the grid, not tuned"
    found = {name: (grid[len(grid) // 2], middle) for name, grid in grid_of(backbone).items() if name != "dynamic"}
    if backbone == "tiny":
        return found | {name: (rates, "the demo's") for name, rates in DEMO_RATES.items()}
    return found | {"hystar": (LARGE_GRID["hystar"][0], "the paper's")}


def groups_at_edge(rates: Rates, grid: list[Rates]) -> list[str]:
    """Return the parameter groups whose rate is the lowest or highest of those tried."""
    tried = {group: [entry[group] for entry in grid] for group in rates}
    return [group for group, rate in rates.items() if len(set(tried[group])) > 1 and rate in _ends(tried[group])]


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)
