"""Steps of a method that makes them itself, on batches by category, of pairs, of names or of captioned pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import optim

from hystar_fast.methods.step_trained import CaptionedBatch, CategoryBatch, NameBatch, PairedBatch, StepTrained
from hystar_fast.train.captioned import CaptionedPictures
from hystar_fast.train.category_pairs import CategoryPairs
from hystar_fast.train.name_data import NameBatches
from hystar_fast.train.optim import check_loss, rate_factor, set_rates
from hystar_fast.train.paired_batches import PairedBatches
from hystar_fast.train.processes import World
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step_maker import StepMaker


class OwnSteps(StepMaker):
    """Steps of `StepTrained.step`.

    Args:
        method: the method to train, begun and on `device`.
        pairs: its batches.
        recipe: of the run.
        world: the processes.
        device: where the pictures go; by default they stay on the CPU.

    Raises:
        ValueError: several processes for a method that cannot divide a batch, or a batch that does not divide evenly;
            or a schedule, a decay, a clipped norm or a jitter that the method does not have.
    """

    method: StepTrained
    optimizers: Mapping[str, optim.Optimizer]

    def __init__(
        self,
        method: StepTrained,
        pairs: CategoryPairs | PairedBatches | NameBatches | CaptionedPictures,
        recipe: Recipe,
        *,
        world: World | None = None,
        device: torch.device | None = None,
    ) -> None:
        if world is not None and world.size > 1 and not method.divides_batches:
            raise ValueError(f"processes must be 1 for method {method.name!r}, got {world.size}")
        for name, needed in _UNUSED.items():
            if name not in method.follows and getattr(recipe, name) != needed:
                raise ValueError(
                    f"{name} must be {needed!r} for method {method.name!r}, which has steps of its own, got "
                    f"{getattr(recipe, name)!r}"
                )
        self.method, self.pairs, self.recipe, self.device = method, pairs, recipe, device
        self.world = world or World()
        if isinstance(pairs, CaptionedPictures):
            pairs.check_share(self.world.size)
        self.optimizers = method.optimizers()

    def open(self) -> dict[str, Any]:
        own = {"pairs": self.pairs.identity(), "method": dict(self.method.settings)}
        return self.recipe.identity() | own | {"frozen weights": dict(self.method.fingerprints)}

    @property
    def skipped(self) -> dict[str, str]:
        return self.pairs.skipped

    def preload(self) -> None:
        if isinstance(self.pairs, PairedBatches):
            self.pairs.store(self.method)

    @property
    def reads_ahead(self) -> bool:
        return isinstance(self.pairs, CategoryPairs | CaptionedPictures) or (
            isinstance(self.pairs, PairedBatches) and not self.pairs.is_stored
        )

    def prepare(self, step: int) -> CategoryBatch | PairedBatch | NameBatch | CaptionedBatch:
        batch: CategoryBatch | PairedBatch | NameBatch | CaptionedBatch
        if isinstance(self.pairs, CaptionedPictures):
            batch = self.pairs.load(step, (self.world.rank, self.world.size))
        else:
            batch = self.pairs.load(step)
        return batch if self.device is None else batch.to(self.device)

    def make(self, step: int, batch: CategoryBatch | PairedBatch | NameBatch | CaptionedBatch) -> dict[str, Any]:
        recipe = self.recipe
        if "schedule" in self.method.follows:
            factor = rate_factor(recipe.schedule, step, recipe.steps, recipe.warmup)
            for optimizer in self.optimizers.values():
                set_rates(optimizer, factor)
        losses = self.method.step(batch, step // self.pairs.batches_per_epoch, step)
        for name, value in losses.items():
            check_loss(value, f"loss {name!r} of {self.method.name!r}", step)
        rates = {group["name"]: group["lr"] for one in self.optimizers.values() for group in one.param_groups}
        return {**losses, "learning_rate": rates}


_UNUSED = {"schedule": "constant", "warmup": 0, "weight_decay": 0.0, "clip_norm": 0.0, "jitter": 0.0}
