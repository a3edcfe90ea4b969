"""A small ACNet: a ResNet of timm with 0.3 million parameters, 32 pixels, and batches of coloured shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_method import ACNet
from hystar_fast.methods.step_trained import CategoryBatch, StepPlan
from hystar_fast.methods.suite import tiny_config

SIDE, CATEGORIES = 32, 8
SMALL = {
    "extractor": "timm:test_resnet",
    "weights": "random",
    "embedding": 16,
    "image_size": SIDE,
    "channels": 4,
    "generator_blocks": 2,
}


def small_acnet(
    *, seed: int = 0, rate: float = 1e-3, double: bool = False, chunk_size: int = 0, **changes: Any
) -> ACNet:
    """Build a small ACNet that has begun."""
    torch.manual_seed(seed)
    method = ACNet(tiny_config(None), ACNetConfig(**{**SMALL, **changes}))
    if double:
        method.model.double()
    method.begin(StepPlan(CATEGORIES, rate, chunk_size=chunk_size, seed=seed))
    if double:
        method.model.double()
    method.train(True)
    return method


def shapes(*, seed: int = 0, count: int = CATEGORIES) -> CategoryBatch:
    """Return coloured rectangles on white, one of each category, and their edges, white on black, as sketches."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CATEGORIES
    photos = torch.full((count, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    sketches = torch.zeros_like(photos)
    colours = torch.randint(0, 200, (CATEGORIES, 3), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        top, left = (int(torch.randint(2, 6, (), generator=generator)) for _ in range(2))
        bottom, right = top + 10 + 2 * (label % 4), left + 10 + 2 * (label // 2)
        photos[row, :, top:bottom, left:right] = colours[label][:, None, None]
        sketches[row, :, top:bottom, left:right] = 255
        sketches[row, :, top + 1 : bottom - 1, left + 1 : right - 1] = 0
    return CategoryBatch(sketches, photos, labels)


def inputs(batch: CategoryBatch, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return sketches and photos in [-1, 1], and the labels."""
    return *((part.to(dtype) / 127.5 - 1) for part in (batch.queries, batch.targets)), batch.labels


def gradients(method: ACNet) -> dict[str, Tensor | None]:
    """Return the gradient of every parameter by name."""
    return {n: None if p.grad is None else p.grad.clone() for n, p in method.model.named_parameters()}


def moved(before: dict[str, Tensor], method: ACNet) -> set[str]:
    """Return the entries of a state dict that have changed."""
    return {name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])}
