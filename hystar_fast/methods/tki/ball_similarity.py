"""Similarities of TKI beside the cosine: the plain inner product, and the distance in the Poincaré ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.nn.hyperbolic import lift

SIMILARITIES = ("cosine", "dot", "poincare")


@dataclass(frozen=True)
class DotSimilarity(Similarity):
    """<q, g> of vectors of any length."""

    @property
    def name(self) -> str:
        return "dot"

    def scores(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return queries @ gallery.mT


@dataclass(frozen=True)
class PoincareSimilarity(Similarity):
    """-d(q, g), the negative distance in the ball, by inner products of lifted points in float64.

    Attributes:
        radius: r of the ball.
    """

    radius: float = 1.0

    @property
    def name(self) -> str:
        return f"poincare-{self.radius:g}"

    def prepare(self, vectors: Tensor) -> Tensor:
        return lift(vectors, self.radius)

    def scores(self, queries: Tensor, gallery: Tensor) -> Tensor:
        time = queries[:, :1] * gallery[:, 0]
        # of equal points 1, but for rounding; the derivative of arcosh there is infinite, and is cut off
        return -self.radius * torch.acosh((time - queries[:, 1:] @ gallery[:, 1:].mT).clamp(min=1 + 1e-14))


def create_similarity(name: str, radius: float) -> Similarity:
    """Return the similarity of a name of `SIMILARITIES`.

    Raises:
        ValueError: another name.
    """
    if name not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {name!r}")
    return {"cosine": COSINE, "dot": DotSimilarity()}.get(name) or PoincareSimilarity(radius)
