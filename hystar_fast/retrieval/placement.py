"""Moving and scaling drawings by a little: for training, and to ask how much a result owes to exact placement."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.retrieval.protocol import GALLERY_STYLE, StyledConcepts


def place_randomly(images: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Shift and scale every image by a little, white coming in from outside. Never mirrored: arrows have a side.

    Args:
        images: floating point [B, 3, H, W] in [0, 1].
        jitter: the largest shift as a share of the side, and the largest relative change of size; 0 changes nothing.
        generator: draws the placements.

    Raises:
        ValueError: `jitter` is not between 0 and 1.
    """
    return place(images, draw_placements(len(images), jitter, generator))


def draw_placements(count: int, jitter: float, generator: torch.Generator) -> Tensor | None:
    """[count, 3]: the change of size, and the shift across and down in sides; None where `jitter` is 0."""
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must lie in 0..1, got {jitter}")
    return None if jitter == 0 else (2 * torch.rand(count, 3, generator=generator) - 1) * jitter


def place(images: Tensor, change: Tensor | None) -> Tensor:
    """Shift and scale images [B, 3, H, W] as `draw_placements` says, one row an image."""
    if change is None:
        return images
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + change[:, 0]
    theta[:, :, 2] = 2 * change[:, 1:]
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return 1 - F.grid_sample(1 - images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def displace(concepts: StyledConcepts, jitter: float, seed: int = 0) -> StyledConcepts:
    """The same concepts with every query drawing placed at random (the same way for a seed); the gallery stays."""
    images = dict(concepts.images)
    generator = torch.Generator().manual_seed(seed)
    for style in images:
        if style != GALLERY_STYLE:
            moved = place_randomly(images[style].float() / 255, jitter, generator)
            images[style] = (moved * 255).round().to(torch.uint8)
    return replace(concepts, images=images)
