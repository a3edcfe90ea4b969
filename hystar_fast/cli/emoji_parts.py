"""The embedded drawings as the data of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hystar_fast.cli.report import USUAL_CUTOFFS, recalls
from hystar_fast.data.open import open_images
from hystar_fast.data.records import ImageSet
from hystar_fast.methods.interface import Method
from hystar_fast.methods.on_device import placed
from hystar_fast.methods.recipes import DEMO_STEPS
from hystar_fast.retrieval.asked import Asked
from hystar_fast.retrieval.evaluate import Evaluation, evaluate
from hystar_fast.retrieval.protocol import (
    GALLERY_STYLE,
    HARD_STYLES,
    IMAGE_STYLES,
    QUERY_STYLES,
    StyledConcepts,
    load_split,
)
from hystar_fast.retrieval.seeds import recorded_ranks
from hystar_fast.train.loop import Keeping, fit
from hystar_fast.train.pairs import PairImages
from hystar_fast.train.recipe import Recipe


class EmojiParts:
    """The splits of :mod:`hystar_fast.retrieval.protocol`.

    Args:
        limit: use only so many concepts of each split.
    """

    styles: tuple[str, ...] = IMAGE_STYLES
    headline: tuple[str, ...] = HARD_STYLES
    cutoffs: Mapping[str, int] = USUAL_CUTOFFS

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    def setting(self) -> dict[str, Any]:
        held_out = self._split("test")
        return {
            "gallery": {"style": GALLERY_STYLE, "n": len(held_out), "concepts": "test split, all of them"},
            "queries": {style: len(held_out.rows(style)) for style in QUERY_STYLES},
        }

    def tuning_setting(self) -> dict[str, Any]:
        return {
            "what": f"largest mean R@1 of {', '.join(HARD_STYLES)} on the validation concepts; R@5 between equals",
            "gallery": len(self._split("val")),
            "training_concepts": len(self._split("train")),
        }

    def steps(self, batch_size: int) -> int:
        return DEMO_STEPS

    def recipe(self, rates: Mapping[str, float], steps: int, seed: int, styles: Sequence[str], size: int) -> Recipe:
        return Recipe(rates, steps=steps, batch_size=size, seed=seed, styles=tuple(styles))

    def train(self, method: Method, recipe: Recipe, device: torch.device) -> list[float]:
        answering, concepts = placed(method, device), self._split("train")
        return fit(
            method, lambda: PairImages.of(answering, concepts, recipe.styles), recipe, Keeping(), device=device
        ).losses

    def validate(self, method: Method, device: torch.device) -> dict[str, Any]:
        found: dict[str, Any] = recalls(self._evaluated(method, "val", device))["all"]
        return found

    def test(self, method: Method, device: torch.device) -> tuple[dict[str, list[int]], Asked | None]:
        return recorded_ranks(self._evaluated(method, "test", device)), None

    def queries(self, asked: Asked | None) -> StyledConcepts:
        return self._split("test")

    def images(self) -> ImageSet:
        return open_images("emoji", "test").select(limit=self.limit)

    def _split(self, split: str) -> StyledConcepts:
        return load_split(split, limit=self.limit)

    def _evaluated(self, method: Method, split: str, device: torch.device) -> Evaluation:
        return evaluate(placed(method, device), self._split(split))
