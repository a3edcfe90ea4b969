"""Shapes of drawings, which the tiny backbone learns to predict from its embedding of a changed view.

With this loss beside the contrastive ones, the towers learn to undo displacement, clutter and colour from the first
steps on, when the contrastive losses are still close to chance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS, CELL = 9, 8  # directions of a gradient without its sign; pixels a side


def shapes(images: Tensor) -> Tensor:
    """Return histograms of gradient directions, unit rows [n, H W BINS / CELL²], of images [n, 3, H, W] in [0, 1].

    Gradients vote for the two nearest directions; a cell is divided by the norm of the 3 x 3 cells around it.

    Source: Dalal and Triggs, Histograms of oriented gradients for human detection, CVPR 2005, simplified.
    """
    grey = images.mean(dim=1, keepdim=True)
    across = F.pad(grey[..., :, 2:] - grey[..., :, :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    strength = (across.square() + down.square()).sqrt()
    direction = torch.atan2(down, across) / math.pi * BINS
    bins = torch.arange(BINS, device=images.device).view(1, -1, 1, 1)
    distance = ((direction - bins + BINS / 2) % BINS - BINS / 2).abs()
    cells = F.avg_pool2d(strength * (1 - distance).clamp(min=0), CELL)
    around = F.avg_pool2d(cells.square().sum(dim=1, keepdim=True), 3, stride=1, padding=1)
    return F.normalize((cells / (around + 1e-4).sqrt()).clamp(max=0.4).flatten(1), dim=1)


def shape_loss(predicted: Tensor, images: Tensor, mean: Tensor) -> Tensor:
    """Return 1 - cosine of predictions [n, k] and the shapes of images less their `mean` [k], averaged over rows."""
    return 1 - F.cosine_similarity(predicted, shapes(images) - mean, dim=1).mean()
