"""Shift, scale and turn pictures at random: to augment training pairs, and to evaluate on displaced queries."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.images import to_float, to_picture, to_uint8

DISPLACEMENT = 0.15  # largest shift, as a share of the side, and largest change of size of a displaced query
TURN = 10.0  # degrees, the largest turn of a displaced query
DISPLACED = f"displaced: shifted and scaled by up to {DISPLACEMENT:.0%}, turned by up to {TURN:.0f} degrees"


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


def draw_placements(count: int, jitter: float, generator: torch.Generator, *, turn: float = 0.0) -> Tensor | None:
    """Draw [count, 4]: change of size (above 0 shrinks), shift left and up in sides, and clockwise turn in degrees.

    Args:
        count: how many.
        jitter: the largest change of size and shift.
        generator: draws them; the turns are drawn last, and not at all if `turn` is 0.
        turn: the largest turn in degrees.

    Returns:
        The placements; None if `jitter` and `turn` are 0.

    Raises:
        ValueError: `jitter` or `turn` is out of range.
    """
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must be at least 0 and below 1, got {jitter}")
    if not 0 <= turn <= 180:
        raise ValueError(f"turn must be at least 0 and at most 180 degrees, got {turn}")
    if jitter == turn == 0:
        return None
    placed = (2 * torch.rand(count, 3, generator=generator) - 1) * jitter
    turned = (2 * torch.rand(count, 1, generator=generator) - 1) * turn if turn else torch.zeros(count, 1)
    return torch.cat([placed, turned], dim=1)


def place(images: Tensor, placements: Tensor | None) -> Tensor:
    """Shift, scale and turn images [B, 3, H, W] by the placements of `draw_placements`, one row an image."""
    if placements is None:
        return images
    height, width = images.shape[-2:]
    size, angle = 1 + placements[:, 0], placements[:, 3].deg2rad()
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = size * angle.cos()
    theta[:, 0, 1] = size * angle.sin() * height / width  # in the grid, both sides are 2 long
    theta[:, 1, 0] = -size * angle.sin() * width / height
    theta[:, :, 2] = 2 * placements[:, 1:3]
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return 1 - F.grid_sample(1 - images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def displace(images: ImageSet, jitter: float, seed: int = 0, *, turn: float = 0.0) -> ImageSet:
    """Return the data set with every query picture placed at random; the gallery is unchanged.

    The placements depend on the seed and on the data set (its styles and its gallery), so every method sees the same
    queries.
    """
    generator = torch.Generator().manual_seed(seed)
    row = {record.instance: i for i, record in enumerate(images.gallery)}
    drawn = {style: draw_placements(len(row), jitter, generator, turn=turn) for style in images.query_styles}

    def read(record: Record) -> Image.Image:
        picture = images.read(record)
        placements = drawn.get(record.style)
        if placements is None or record.instance not in row:
            return picture
        placement = placements[row[record.instance]]
        return to_picture(place(to_float(to_uint8(picture))[None], placement[None])[0])

    return replace(images, read=read)


def displace_queries(images: ImageSet) -> ImageSet:
    """Return a data set with the queries of the main protocol: shifted, scaled and turned, always the same."""
    return displace(images, DISPLACEMENT, turn=TURN)
