"""Steps of a method that makes them itself, on batches by category."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import optim

from hystar_fast.methods.step_trained import CategoryBatch, StepTrained
from hystar_fast.train.category_pairs import CategoryPairs
from hystar_fast.train.optim import check_loss
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
        ValueError: several processes, or a schedule, a decay, a clipped norm or a jitter, which such a method does not
            have.
    """

    method: StepTrained
    optimizers: Mapping[str, optim.Optimizer]

    def __init__(
        self,
        method: StepTrained,
        pairs: CategoryPairs,
        recipe: Recipe,
        *,
        world: World | None = None,
        device: torch.device | None = None,
    ) -> None:
        if world is not None and world.size > 1:
            raise ValueError(f"processes must be 1 for method {method.name!r}, got {world.size}")
        for name, needed in _UNUSED.items():
            if getattr(recipe, name) != needed:
                raise ValueError(
                    f"{name} must be {needed!r} for method {method.name!r}, which has steps of its own, got "
                    f"{getattr(recipe, name)!r}"
                )
        self.method, self.pairs, self.recipe, self.device = method, pairs, recipe, device
        self.optimizers = method.optimizers()

    def open(self) -> dict[str, Any]:
        own = {"pairs": self.pairs.identity(), "method": dict(self.method.settings)}
        return self.recipe.identity() | own | {"frozen weights": dict(self.method.fingerprints)}

    @property
    def skipped(self) -> dict[str, str]:
        return self.pairs.skipped

    def prepare(self, step: int) -> CategoryBatch:
        batch = self.pairs.load(step)
        if self.device is None:
            return batch
        return CategoryBatch(*(part.to(self.device) for part in (batch.queries, batch.targets, batch.labels)))

    def make(self, step: int, batch: CategoryBatch) -> dict[str, Any]:
        losses = self.method.step(batch, step // self.pairs.batches_per_epoch, step)
        for name, value in losses.items():
            check_loss(value, f"loss {name!r} of {self.method.name!r}", step)
        rates = {group["name"]: group["lr"] for one in self.optimizers.values() for group in one.param_groups}
        return {**losses, "learning_rate": rates}


_UNUSED = {"schedule": "constant", "warmup": 0, "weight_decay": 0.0, "clip_norm": 0.0, "jitter": 0.0}
