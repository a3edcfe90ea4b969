"""A backbone's preprocessing for image tensors, derived from its callable for PIL images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class TensorPreprocess:
    """Resizes [0, 1] images to a backbone's input and applies its normalisation.

    The normalisation of every CLIP-like preprocessing is one affine map a channel, so what it makes of a black and of
    a white picture says all of it: x -> black + x (white - black).

    Args:
        preprocess: PIL image -> float tensor [3, S, S].

    Raises:
        ValueError: `preprocess` returns something else, or is not affine a channel (checked on a grey picture).
    """

    def __init__(self, preprocess: Callable[[Image.Image], Tensor]) -> None:
        black, white, grey = (preprocess(Image.new("RGB", (64, 64), (v, v, v))) for v in (0, 255, 51))
        if black.ndim != 3 or black.shape[0] != 3:
            raise ValueError(f"preprocess must return [3, S, S], got {tuple(black.shape)}")
        self.size = (black.shape[1], black.shape[2])
        self.shift = black.mean((1, 2)).view(1, 3, 1, 1)
        self.scale = (white - black).mean((1, 2)).view(1, 3, 1, 1)
        expected = self.shift + 0.2 * self.scale
        if not torch.allclose(grey, expected[0].expand_as(grey), atol=1e-4):
            raise ValueError("preprocess must be one affine map a channel after resizing, and is not on grey")

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, size=self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.shift.to(images.device) + images * self.scale.to(images.device)
