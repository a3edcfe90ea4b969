"""Steps of a method with a loss of pairs: one optimiser, the gradient of a batch of queries and their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW

from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.nn.losses import PairLoss
from hystar_fast.train.optim import check_loss, clip_gradients, parameter_groups, rate_factor, set_rates
from hystar_fast.train.pairs import PairSampler, TrainingPairs
from hystar_fast.train.processes import World
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import Inputs, backward, prepare
from hystar_fast.train.step_maker import StepMaker


class ContrastiveSteps(StepMaker):
    """Steps on `Method.loss`, or on another loss of pairs.

    Args:
        method: the method to train, on `device`.
        open_pairs: opens the training pairs.
        recipe: see `Recipe`.
        criterion: loss of (query, target, mask=None); by default the method's own.
        world: the processes; each has the same method, pairs and recipe.
        device: where the pictures go; by default they stay on the CPU.

    Raises:
        ValueError: a recipe that does not fit the method.
    """

    optimizers: AdamW

    def __init__(
        self,
        method: Method,
        open_pairs: Callable[[], TrainingPairs],
        recipe: Recipe,
        criterion: PairLoss | None,
        world: World,
        device: torch.device | None,
    ) -> None:
        if method.initialises_from_first_batch and (world.size > 1 or recipe.chunk_size):
            raise ValueError(
                f"chunk_size must be 0 and processes 1 for method {method.name!r}, which initialises from its whole "
                f"first batch, got chunk_size {recipe.chunk_size} and {world.size} processes"
            )
        groups = parameter_groups(method.parameter_groups(), recipe.learning_rates, recipe.weight_decay)
        if not groups:
            raise ValueError(f"method must have trainable parameters, got {method.name!r}")
        self.method, self.recipe, self.criterion = method, recipe, criterion
        self.world, self.device = world, device
        self._open_pairs = open_pairs
        self._trainable = [p for group in groups for p in group["params"]]
        self.optimizers = AdamW(groups, fused=self._trainable[0].device.type in ("cpu", "cuda"))

    def open(self) -> dict[str, Any]:
        self.world.broadcast_parameters(self._trainable)
        self.pairs = self._open_pairs()
        self._sampler = PairSampler(self.pairs, self.recipe.batch_size, self.recipe.seed)
        frozen = {"frozen weights": dict(self.method.fingerprints)}
        return self.recipe.identity() | {"pairs": self.pairs.identity()} | frozen

    def preload(self) -> None:
        self.pairs.preload(self.method if self.device is None else on_device(self.method, self.device))

    @property
    def reads_ahead(self) -> bool:
        return not self.pairs.is_preloaded

    @property
    def skipped(self) -> dict[str, str]:
        return self.pairs.skipped

    def prepare(self, step: int) -> Inputs:
        batch = self._sampler.batch(step)
        return prepare(self.method, self.pairs, batch, self.recipe, step, world=self.world, device=self.device)

    def make(self, step: int, batch: Inputs) -> dict[str, Any]:
        recipe, optimizer, name = self.recipe, self.optimizers, self.method.name
        set_rates(optimizer, rate_factor(recipe.schedule, step, recipe.steps, recipe.warmup))
        optimizer.zero_grad(set_to_none=True)
        loss = backward(self.method, batch, recipe, criterion=self.criterion, world=self.world)
        check_loss(loss, f"loss of {name!r}", step)
        self.world.reduce(self._trainable)
        about = f"{name!r} at step {step}, whose loss is {loss},"
        norm = clip_gradients(self._trainable, recipe.clip_norm, about)
        optimizer.step()
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        return {"loss": loss, "gradient_norm": norm, "learning_rate": rates}
