"""How the demo's methods are set: the model, the grid each was tuned on, and the learning rates that won.

Every trained method got the same number of trials, steps, pairs and seeds, and was chosen by the mean R@1 of the hard
queries on the validation concepts (``hystar-fast tune``). The trials are in docs/results/demo_tuning.json; a test
holds the two together.
"""

from __future__ import annotations

from hystar_fast.models.config import HystarConfig

DEMO_STEPS = 120
TUNING_SEEDS = (0, 1, 2)

# Learning rates by parameter group, five trials a method; of Hystar's two rates, a cross.
GRID: dict[str, list[dict[str, float]]] = {
    "static": [{"static": rate} for rate in (1.5e-2, 3e-2, 6e-2, 0.12, 0.24)],
    "lora": [{"lora": rate} for rate in (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2)],
    "hystar": [
        {"static": static, "dynamic": dynamic}
        for static, dynamic in ((3e-2, 1e-3), (6e-2, 3e-4), (6e-2, 1e-3), (6e-2, 3e-3), (0.12, 1e-3))
    ],
}

# Where only hypernetworks train.
DYNAMIC_GRID: list[dict[str, float]] = [{"dynamic": rate} for rate in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)]

# The same for the baselines that only `hystar-fast compare` trains.
BASELINE_GRID: dict[str, list[dict[str, float]]] = {
    name: [{name: rate} for rate in rates]
    for name, rates in {
        "ia3": (1e-2, 3e-2, 6e-2, 0.12, 0.24),
        "vpt": (1e-3, 3e-3, 1e-2, 3e-2, 0.1),
        "freestyle": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        "adaptformer": (1e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2),
        "ssf": (1e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2),
        "svft": (1.5e-2, 3e-2, 6e-2, 0.12, 0.24),
        "last_block": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    }.items()
}

# With any other backbone than the tiny one: the paper's rates of Hystar first (Section 4.1), the others spread around
# what their own papers train at. A best rate at an edge is named below the table of a comparison.
LARGE_GRID: dict[str, list[dict[str, float]]] = {
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

CHOSEN: dict[str, dict[str, float]] = {
    "static": {"static": 0.12},
    "lora": {"lora": 0.003},
    "hystar": {"static": 0.06, "dynamic": 0.003},
}


def untuned_rates(backbone: str) -> dict[str, tuple[dict[str, float], str]]:
    """Name -> the learning rates of a trained method where nobody has tuned them, and in words where they come from.

    Args:
        backbone: of the configuration; what was chosen for the tiny one is far too high for large ones.

    Example:
        >>> untuned_rates("tiny")["lora"]
        ({'lora': 0.003}, 'chosen for the demo')
        >>> untuned_rates("open_clip:ViT-L-14")["hystar"]
        ({'static': 0.001, 'dynamic': 1e-05}, "the paper's")
    """
    grids = BASELINE_GRID if backbone == "tiny" else LARGE_GRID
    middle = "the middle of the grid, as nothing was tuned"
    found = {name: (grid[len(grid) // 2], middle) for name, grid in grids.items() if name != "dynamic"}
    if backbone == "tiny":
        return found | {name: (rates, "chosen for the demo") for name, rates in CHOSEN.items()}
    return found | {"hystar": (LARGE_GRID["hystar"][0], "the paper's")}


def demo_config(pretrained: str | None = "packaged") -> HystarConfig:
    """The Hystar of the demo: the tiny backbone with its own frozen embedding as the style."""
    return HystarConfig(backbone="tiny", pretrained=pretrained, style="clip", blocks=None)
