"""A similarity that is not cosine, and a method with it."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.data.images import to_float
from hystar_fast.methods.interface import Method
from hystar_fast.methods.similarity import Similarity


class NegativeDistance(Similarity):
    """Minus the squared Euclidean distance; `prepare` adds the square of each row."""

    name = "negative_distance"

    def __init__(self) -> None:
        self.prepared = 0

    def prepare(self, vectors: Tensor) -> Tensor:
        self.prepared += 1
        return torch.cat([vectors, vectors.square().sum(1, keepdim=True)], dim=1)

    def scores(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return 2 * queries[:, :-1] @ gallery[:, :-1].mT - queries[:, -1:] - gallery[:, -1]


class Colours(Method):
    """The mean colour of a picture, times its largest value, compared by distance: no unit vector."""

    name = "colours"
    similarity = NegativeDistance()

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return 3 * to_float(images).mean((2, 3))

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(len(text)) / 10, 1.0, 2.0] for text in texts])
