"""The recipe of a training run: steps, rates, schedule, augmentation and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hystar_fast.train.optim import SCHEDULES

MAX_SEED = 2**32 - 1  # a seed is multiplied before it reaches a generator of 64 bits


@dataclass(frozen=True)
class Recipe:
    """Parameters of the training loop. The defaults are the demo's; every method has its own learning rates.

    Attributes:
        learning_rates: peak rate of every parameter group.
        steps: optimiser steps.
        batch_size: pairs a step (48 in the paper).
        warmup: steps of linear warm-up.
        schedule: of the rates after the warm-up, one of `SCHEDULES`.
        weight_decay: of matrices.
        clip_norm: largest gradient norm; 0 does not clip.
        styles: query styles; empty for all picture styles of the data set.
        jitter: largest random shift (as a share of the side) and relative change of size of each picture; 0 for none.
        seed: of the order of the pairs, of the placement and of random numbers in a forward pass.
        bf16: run the encoder in bfloat16 (autocast) where `multiplies_bf16`; the loss stays in float32.
        chunk_size: images an encoder pass; 0 for the whole batch. Loss, negatives and gradients are those of the whole
            batch in either case (`train.step`).

    Raises:
        ValueError: an entry is out of range.
    """

    learning_rates: Mapping[str, float]
    steps: int = 200
    batch_size: int = 48
    warmup: int = 10
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    styles: tuple[str, ...] = ()
    jitter: float = 0.15
    seed: int = 0
    bf16: bool = True
    chunk_size: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "warmup", "chunk_size", "clip_norm", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be at least 0 and at most {MAX_SEED}, got {self.seed}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share: every entry, but not the steps of a constant schedule."""
        entries = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.schedule == "constant":
            entries.pop("steps")
        return entries | {"learning_rates": dict(self.learning_rates), "styles": list(self.styles)}
