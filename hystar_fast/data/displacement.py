"""Shift and scale pictures at random: to augment training pairs, and to evaluate on displaced queries."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.images import to_float, to_picture, to_uint8


def place_randomly(images: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Shift and scale every image by a random amount, on white. Images are never mirrored: arrows have a direction.

    Args:
        images: floating point [B, 3, H, W] in [0, 1].
        jitter: the largest shift as a share of the side, and the largest relative change of size; 0 changes nothing.
        generator: draws the placements.

    Raises:
        ValueError: `jitter` is not between 0 and 1.
    """
    return place(images, draw_placements(len(images), jitter, generator))


def draw_placements(count: int, jitter: float, generator: torch.Generator) -> Tensor | None:
    """Draw [count, 3]: change of size (above 0 shrinks), shift left and up in sides; None if `jitter` is 0."""
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must be at least 0 and below 1, got {jitter}")
    return None if jitter == 0 else (2 * torch.rand(count, 3, generator=generator) - 1) * jitter


def place(images: Tensor, placements: Tensor | None) -> Tensor:
    """Shift and scale images [B, 3, H, W] by the placements of `draw_placements`, one row an image."""
    if placements is None:
        return images
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + placements[:, 0]
    theta[:, :, 2] = 2 * placements[:, 1:]
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return 1 - F.grid_sample(1 - images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def displace(images: ImageSet, jitter: float, seed: int = 0) -> ImageSet:
    """Return the data set with every query picture placed at random; the gallery is unchanged.

    The placements depend on the seed and on the data set (its styles and its gallery), so every method sees the same
    queries.
    """
    generator = torch.Generator().manual_seed(seed)
    row = {record.instance: i for i, record in enumerate(images.gallery)}
    drawn = {style: draw_placements(len(row), jitter, generator) for style in images.query_styles}

    def read(record: Record) -> Image.Image:
        picture = images.read(record)
        placements = drawn.get(record.style)
        if placements is None or record.instance not in row:
            return picture
        placement = placements[row[record.instance]]
        return to_picture(place(to_float(to_uint8(picture))[None], placement[None])[0])

    return replace(images, read=read)
