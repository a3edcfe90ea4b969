"""Patch shuffling: the squares of a picture in another order, the same one for a sketch and its photo."""

from __future__ import annotations

import torch
from torch import Tensor

_STEP = 7_368_787  # a prime between the seeds of runs, so that no two runs share the orders of a step


def draw_orders(count: int, grid: int, seed: int, step: int) -> Tensor:
    """Return a random order of the squares of each pair, int64 [count, grid²]; it depends on seed and step alone.

    Args:
        count: pairs.
        grid: squares a side.
        seed: of the run.
        step: from 0.
    """
    generator = torch.Generator().manual_seed(seed * _STEP + step)
    return torch.rand(count, grid * grid, generator=generator, dtype=torch.float64).argsort(dim=1)


def check_grid(grid: int, size: tuple[int, int]) -> None:
    """Raise ValueError unless pictures [height, width] divide into grid x grid equal parts."""
    if grid < 1 or size[0] % grid or size[1] % grid:
        raise ValueError(f"shuffle_grid must divide the sides of pictures of {size[0]} x {size[1]} pixels, got {grid}")


def shuffle_patches(pictures: Tensor, orders: Tensor) -> Tensor:
    """Return pictures whose square i is square ``orders[:, i]`` of the given ones, row by row.

    Args:
        pictures: [b, C, H, W] of any dtype.
        orders: int64 [b, n²], a permutation for each picture.

    Raises:
        ValueError: H or W is no multiple of n.

    >>> picture = torch.arange(16).view(1, 1, 4, 4)
    >>> shuffle_patches(picture, torch.tensor([[3, 1, 2, 0]]))[0, 0, :2, :2]
    tensor([[10, 11],
            [14, 15]])
    """
    b, C, H, W = pictures.shape
    n = round(orders.shape[1] ** 0.5)
    check_grid(n, (H, W))
    h, w = H // n, W // n
    squares = pictures.view(b, C, n, h, n, w).permute(0, 2, 4, 1, 3, 5).reshape(b, n * n, C, h, w)
    rows = torch.arange(b, device=pictures.device)[:, None]
    moved = squares[rows, orders.to(pictures.device)]
    return moved.view(b, n, n, C, h, w).permute(0, 3, 1, 4, 2, 5).reshape(b, C, H, W)
