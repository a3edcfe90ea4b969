"""Random views of drawings for pretraining: moved, redrawn as line art, on paper, photographed, in other colours.

Low-resolution views are excluded because the demo evaluates them. Every change applies to some rows of a batch, so a
step pays for the changed rows only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_SHIFT = 0.18  # of the side
LARGEST_ANGLE = 0.3  # radians
SCALES = (0.78, 1.35)  # above 1 shrinks


def make_views(images: Tensor) -> Tensor:
    """Change drawings at random: uint8 [n, 3, H, W] to floats in [-1, 1] of the same shape and device."""
    paper = 1 - images.float().div(255)  # ink is positive, so that the outside of a picture is empty paper
    x = 1 - F.grid_sample(paper, _grid(paper), align_corners=False)
    for share, change in _CHANGES:
        rows = torch.rand(len(x), device=x.device) < share
        if rows.any():
            x[rows] = change(x[rows])
    return x.clamp_(0, 1).mul_(2).sub_(1)


def _uniform(x: Tensor, low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(len(x), *shape, device=x.device).uniform_(low, high)


def _grid(x: Tensor) -> Tensor:
    """Return where each pixel comes from: turned, scaled, shifted, some in perspective and drawn by a shaky hand."""
    n, _, height, width = x.shape
    angle = _uniform(x, -LARGEST_ANGLE, LARGEST_ANGLE) * (_uniform(x, 0, 1) < 0.6)
    scale = _uniform(x, math.log(SCALES[0]), math.log(SCALES[1])).exp()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = _uniform(x, -2 * LARGEST_SHIFT, 2 * LARGEST_SHIFT, 2)
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
    rows = torch.rand(n, device=x.device) < 0.3
    if rows.any():
        moved = grid[rows]
        depth = 1 + (moved * _uniform(moved, -0.15, 0.15, 1, 1, 2)).sum(dim=-1, keepdim=True)
        waves = torch.randn(len(moved), 2, 6, 6, device=x.device) * _uniform(moved, 0, 0.03, 1, 1, 1)
        waves = F.interpolate(waves, (height, width), mode="bicubic", align_corners=True)
        grid[rows] = moved / depth + waves.permute(0, 2, 3, 1)
    return grid


def _grey(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True)


def _edges(x: Tensor) -> Tensor:
    """Return dark lines, [n, 1, H, W], where the grey value changes, some of them wide."""
    grey = _grey(x)
    right = F.pad(grey[..., :, 1:] - grey[..., :, :-1], (0, 1))
    down = F.pad(grey[..., 1:, :] - grey[..., :-1, :], (0, 0, 0, 1))
    lines = (right.square() + down.square()).sqrt()
    wide = _uniform(x, 0, 1, 1, 1, 1) < 0.5
    lines = torch.where(wide, F.max_pool2d(lines, 2, stride=1, padding=1)[..., 1:, 1:], lines)
    return 1 - (lines * _uniform(x, 1.5, 6.0, 1, 1, 1)).clamp(max=1)


def _line_art(x: Tensor) -> Tensor:
    return _edges(x).expand_as(x)


def _ink(x: Tensor) -> Tensor:
    """Draw in black and white: dark areas are filled, and lines surround the others."""
    level = _uniform(x, 0.2, 0.65, 1, 1, 1)
    filled = ((_grey(x) - level) * 12 + 0.5).clamp(0, 1)
    return torch.minimum(filled, _edges(x)).expand_as(x)


def _pencil(x: Tensor) -> Tensor:
    grey = _grey(x)
    around = F.avg_pool2d(grey, 5, stride=1, padding=2, count_include_pad=False)
    lines = ((grey + 0.02) / (around + 0.02)).clamp(max=1) ** _uniform(x, 1.0, 3.0, 1, 1, 1)
    shaded = lines * (1 - (1 - grey) * _uniform(x, 0, 0.5, 1, 1, 1))
    return (1 - (1 - shaded) * (1 - 0.5 * torch.rand_like(grey))).expand_as(x)


def _halftone(x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[2], device=x.device).view(1, 1, -1, 1)
    columns = torch.arange(x.shape[3], device=x.device)
    turn, period = _uniform(x, 0, 1.57, 1, 1, 1), _uniform(x, 2.5, 5.0, 1, 1, 1)
    along, across = rows * turn.cos() + columns * turn.sin(), columns * turn.cos() - rows * turn.sin()
    screen = 0.5 + 0.18 * ((6.283 / period * along).cos() + (6.283 / period * across).cos())
    return ((_grey(x) - screen) * 4 + 0.5).clamp(0, 1).expand_as(x)


def _thicken(x: Tensor) -> Tensor:
    return 1 - F.max_pool2d(1 - x, 3, stride=1, padding=1)


def _thin(x: Tensor) -> Tensor:
    return torch.lerp(x, F.max_pool2d(x, 2, stride=1, padding=1)[..., 1:, 1:], _uniform(x, 0.3, 0.8, 1, 1, 1))


def _posterise(x: Tensor) -> Tensor:
    return (x * 2).round() / 2


def _clutter(x: Tensor) -> Tensor:
    """Add a part of another drawing of the batch at a random side."""
    turn, far = _uniform(x, 0, 6.283), _uniform(x, 1.1, 1.6)
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 2], theta[:, 1, 2] = turn.cos() * far, turn.sin() * far
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return x * (1 - F.grid_sample(1 - x.roll(1, dims=0), grid, align_corners=False))


def _two_colours(x: Tensor) -> Tensor:
    ink, paper = _uniform(x, 0, 0.6, 3, 1, 1), _uniform(x, 0.75, 1, 3, 1, 1)
    return ink + (paper - ink) * x


def _tint(x: Tensor) -> Tensor:
    mix = torch.eye(3, device=x.device) + _uniform(x, -0.15, 0.15, 3, 3)
    gain, offset = _uniform(x, 0.8, 1.2, 1, 1, 1), _uniform(x, -0.1, 0.1, 1, 1, 1)
    return torch.einsum("nchw,ndc->ndhw", x, mix) * gain + offset


def _paper(x: Tensor) -> Tensor:
    """Lay the drawing on paper with coarse stains and a fine grain."""
    stains = F.interpolate(torch.rand(len(x), 3, 5, 5, device=x.device), x.shape[-2:], mode="bilinear")
    grain = torch.rand_like(x[:, :1])
    return x * (1 - stains * _uniform(x, 0, 0.25, 1, 1, 1) - grain * _uniform(x, 0, 0.2, 1, 1, 1))


def _light(x: Tensor) -> Tensor:
    """Light the page from one side, as a photograph of it is."""
    rows = torch.linspace(-1, 1, x.shape[2], device=x.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, x.shape[3], device=x.device)
    slope = _uniform(x, -0.25, 0.25, 2, 1, 1)
    light = _uniform(x, 0.75, 1, 1, 1, 1) + slope[:, :1] * rows + slope[:, 1:] * columns
    return x * light.clamp(max=1.1)


def _invert(x: Tensor) -> Tensor:
    return 1 - x


_CHANGES: tuple[tuple[float, Callable[[Tensor], Tensor]], ...] = (
    # share of the views, change, in this order
    (0.15, _line_art),
    (0.12, _ink),
    (0.06, _pencil),
    (0.04, _halftone),
    (0.12, lambda x: _grey(x).expand_as(x)),
    (0.08, _thicken),
    (0.08, _thin),
    (0.08, _posterise),
    (0.10, _clutter),
    (0.30, _two_colours),
    (0.50, _tint),
    (0.15, _paper),
    (0.15, _light),
    (0.08, _invert),
)
