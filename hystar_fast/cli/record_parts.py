"""Any data set that `open_images` reads as the data of a comparison: DSR, DomainNet, folders, pairs, shards, icons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hystar_fast.cli.report import USUAL_CUTOFFS, recalls
from hystar_fast.data.open import open_images
from hystar_fast.data.records import ImageSet
from hystar_fast.methods.interface import Method
from hystar_fast.methods.on_device import placed
from hystar_fast.retrieval.asked import Asked, recorded
from hystar_fast.retrieval.batch24 import BATCH, CUTOFFS
from hystar_fast.retrieval.evaluate_images import PROTOCOLS, evaluate_images
from hystar_fast.retrieval.seeds import restored
from hystar_fast.train.loop import Keeping, fit
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.records import RecordPairs, hold_out

EPOCHS = 35  # Section 4.1 of the paper
VALIDATION, TEST = 0.1, 0.2


class RecordParts:
    """The training part, a share of it held out to choose by, and the test part.

    A data set without splits of its own is divided by a hash of its names: 10 % choose and 20 % are asked in the end.
    Methods train as `hystar-fast train` does with its defaults: a constant rate, no warm-up, pictures as they are.

    Args:
        data: see :func:`hystar_fast.data.open.open_images`.
        limit: use only so many pictures of each style of every part.
        protocol: of the test part.
        gallery_style: of folders, shards and icons, the style that answers.

    Raises:
        ValueError: the data cannot be opened, has nothing to choose by or to ask, or the protocol is unknown.
    """

    def __init__(
        self, data: str, limit: int | None = None, protocol: str = "full", gallery_style: str | None = None
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {(*PROTOCOLS,)}, got {protocol!r}")
        self.protocol = protocol
        training, held_out, test = _divided(data, gallery_style)
        self.training, self.held_out, self._test = (part.select(limit=limit) for part in (training, held_out, test))
        trained = RecordPairs(self.training)
        self.styles, self._trained = trained.styles, len(trained)
        self.headline = tuple(style for style in self._test.styles[1:] if style in self.styles)
        for part, what in ((self.held_out, "choose by"), (self._test, "ask")):
            try:
                RecordPairs(part, self.styles)
            except ValueError as error:
                raise ValueError(f"{data} leaves nothing to {what}: {error}") from error
        self.cutoffs: Mapping[str, int] = USUAL_CUTOFFS
        if protocol == "batch24":
            self.cutoffs = dict(zip(USUAL_CUTOFFS, CUTOFFS.values(), strict=True))

    def setting(self) -> dict[str, Any]:
        test = self._test
        counts = {style: len(test.of_style(style)) for style in test.styles}
        whole = counts.pop(test.gallery_style)
        captions = sum(record.caption is not None for record in test.of_style(test.gallery_style))
        batches = self.protocol == "batch24"
        return {
            "data": test.name,
            "headline": list(self.headline),
            "cutoffs": dict(self.cutoffs),
            "gallery": {
                "style": test.gallery_style,
                "n": BATCH if batches else whole,
                "concepts": PROTOCOLS["batch24"] if batches else "test part, all of them",
            },
            "queries": counts | ({"text": captions} if captions else {}),
        }

    def tuning_setting(self) -> dict[str, Any]:
        return {
            "data": self.training.name,
            "what": f"largest mean R@1 of {', '.join(self.styles)} on pictures held out; R@5 between equals",
            "gallery": len(self.held_out.of_style(self.held_out.gallery_style)),
            "training_concepts": self._trained,
        }

    def steps(self, batch_size: int) -> int:
        return EPOCHS * max(1, self._trained // min(batch_size, self._trained))

    def recipe(self, rates: Mapping[str, float], steps: int, seed: int, styles: Sequence[str], size: int) -> Recipe:
        return Recipe(
            rates,
            steps=steps,
            batch_size=size,
            warmup=0,
            schedule="constant",
            clip_norm=0.0,
            styles=tuple(styles),
            jitter=0.0,
            seed=seed,
        )

    def train(self, method: Method, recipe: Recipe, device: torch.device) -> list[float]:
        reader = placed(method, device).reader
        # With categories alone a batch has other right answers than the pair's own: only a loss with a mask knows.
        loss: Any = getattr(method, "criterion", None)
        pairs = RecordPairs(self.training, recipe.styles, reader)
        return fit(method, lambda: pairs, recipe, Keeping(), criterion=loss, device=device).losses

    def validate(self, method: Method, device: torch.device) -> dict[str, Any]:
        report = evaluate_images(placed(method, device), self.held_out)
        rows = [row for row in report.rows if row.queries in self.styles and row.n]
        if not rows:
            raise ValueError(
                f"no held-out query of {self.held_out.name} can be answered: there is nothing to choose by"
            )
        evaluation = restored(*recorded(self.held_out, rows))
        found: dict[str, Any] = recalls(evaluation, list(evaluation.ranks))["all"]
        return found

    def test(self, method: Method, device: torch.device) -> tuple[dict[str, list[int]], Asked | None]:
        report = evaluate_images(placed(method, device), self._test, protocol=self.protocol)
        return recorded(self._test, report.rows)

    def queries(self, asked: Asked | None) -> Asked:
        return asked or Asked(0, {})

    def images(self) -> ImageSet:
        return self._test


def _divided(data: str, gallery_style: str | None) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training, validation and test; no picture is in two of them."""
    training, test = (open_images(data, split, gallery_style=gallery_style) for split in ("train", "test"))
    if {record.path for record in training.records} & {record.path for record in test.records}:
        training, rest = hold_out(test, VALIDATION + TEST)
        held_out, test = hold_out(rest, TEST)
    else:
        training, held_out = hold_out(training, VALIDATION)
    for part in (training, held_out, test):
        if not part.has_gallery:
            raise ValueError(f"{part.name} has too few pictures to train on, to choose by and to ask")
    return training, held_out, test
