"""A lower bound: cosine similarity of histograms of oriented gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.images import to_float
from hystar_fast.methods.interface import Method


class HOG(Method):
    """Histograms of oriented gradients (Dalal and Triggs, 2005) by scikit-image, the classic descriptor of sketches.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """

    name = "hog"

    def __init__(self, cell: int = 8, orientations: int = 9) -> None:
        try:
            from skimage.feature import hog
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the HOG baseline needs scikit-image: pip install scikit-image", name="skimage"
            ) from error
        self._hog = hog
        self.cell, self.orientations = cell, orientations

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        described = [
            self._hog(
                picture,
                orientations=self.orientations,
                pixels_per_cell=(self.cell, self.cell),
                cells_per_block=(2, 2),
                channel_axis=-1,
            )
            for picture in to_float(images).permute(0, 2, 3, 1).cpu().numpy()
        ]
        return F.normalize(torch.from_numpy(np.stack(described)).float().to(images.device), dim=-1)
