"""A method that encodes queries in another way than the gallery."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.linear_method import Linear


class TurnedQueries(Linear):
    """Reverses the numbers of a query's vector, and records (name, rows, has a style) of each call."""

    name = "turned"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int, bool]] = []
        with torch.no_grad():
            self.shift.normal_(generator=torch.Generator().manual_seed(1))

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        self.calls.append(("image", len(images), style is not None))
        return super().encode_image(images, style)

    def encode_query(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        self.calls.append(("query", len(images), style is not None))
        return super().encode_image(images, style).flip(1)
