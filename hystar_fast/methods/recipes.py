"""How the demo's methods are set: the model, the grid each was tuned on, and the learning rates that won.

Every trained method got the same number of trials, steps and pairs, and was chosen by the mean R@1 of the hard
queries on the validation concepts (``hystar-fast tune``). The trials are in docs/results/demo_tuning.json; a test
holds the two together.
"""

from __future__ import annotations

from hystar_fast.models.config import HystarConfig

DEMO_STEPS = 100

# Learning rates by parameter group, three trials a method.
GRID: dict[str, list[dict[str, float]]] = {
    "static": [{"static": rate} for rate in (1e-2, 3e-2, 6e-2)],
    "lora": [{"lora": rate} for rate in (1e-3, 3e-3, 6e-3)],
    "hystar": [{"static": 1e-2, "dynamic": 1e-3}, {"static": 3e-2, "dynamic": 3e-3}, {"static": 5e-2, "dynamic": 1e-2}],
}

CHOSEN: dict[str, dict[str, float]] = {
    "static": {"static": 0.06},
    "lora": {"lora": 0.003},
    "hystar": {"static": 0.03, "dynamic": 0.003},
}


def demo_config(pretrained: str | None = "packaged") -> HystarConfig:
    """The Hystar of the demo: the tiny backbone with its own frozen embedding as the style."""
    return HystarConfig(backbone="tiny", pretrained=pretrained, style="clip", blocks=None)
