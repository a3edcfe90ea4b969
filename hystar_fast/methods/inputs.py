"""How pictures become tensors: read as a backbone frames them, and normalised as it normalises them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F


class PictureReader(Protocol):
    """Makes a tensor of a picture of any shape: the one way pictures are read, to train, evaluate, index and search."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is read."""

    def read(self, picture: Image.Image) -> Tensor:
        """A picture in RGB as uint8 [3, *size]."""


@dataclass(frozen=True)
class MiddleSquare:
    """Crops a picture to its middle square and resizes that bicubically: for systems without a backbone.

    Attributes:
        side: pixels a side.
    """

    side: int

    @property
    def size(self) -> tuple[int, int]:
        return self.side, self.side

    def read(self, picture: Image.Image) -> Tensor:
        square = ImageOps.fit(picture, self.size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)


class TensorPreprocess:
    """A backbone's preprocessing in two parts: pictures to pixels (`read`), and pixels to its input (a call).

    The normalisation of every CLIP-like preprocessing is one affine map a channel, so what it makes of a black and of
    a white picture says all of it: x -> black + x (white - black). Undone on what it makes of any other picture, it
    leaves the pixels as the backbone crops, squashes and resamples them. Images [0, 1] of another size are resized.

    Args:
        preprocess: PIL image -> float tensor [3, S, S].

    Raises:
        ValueError: `preprocess` returns something else, or is not affine a channel (checked on a grey picture).
    """

    def __init__(self, preprocess: Callable[[Image.Image], Tensor]) -> None:
        self._preprocess = preprocess
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

    def read(self, picture: Image.Image) -> Tensor:
        """A picture in RGB as uint8 [3, *size], framed and resampled as the backbone's own preprocessing does it."""
        pixels = (self._preprocess(picture) - self.shift[0]) / self.scale[0]
        return (255 * pixels).round().clamp(0, 255).to(torch.uint8)
