"""A lower bound: cosine similarity of small grey pictures."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.images import to_float
from hystar_fast.methods.interface import Method

_LUMA = (0.299, 0.587, 0.114)


class Pixels(Method):
    """Grey pixels of a shrunken image, centred and normalised: retrieval without any learning.

    Args:
        side: pixels a side.
    """

    name = "pixels"

    def __init__(self, side: int = 16) -> None:
        if side < 1:
            raise ValueError(f"side must be at least 1, got {side}")
        self.side = side

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        images = to_float(images)
        grey = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        small = F.adaptive_avg_pool2d(grey, self.side).flatten(1)
        return F.normalize(small - small.mean(-1, keepdim=True), dim=-1)
