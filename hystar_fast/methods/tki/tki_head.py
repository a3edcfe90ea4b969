"""The head of TKI: a small MLP behind both towers of a frozen CLIP, whose last or whole part is hyperbolic."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.nn.hyperbolic import BallPoint, HyperbolicLinear, add_points, point_of, tangent_of

GEOMETRIES = ("last", "all", "euclidean")
STARTS = ("clip", "random")


class TKIHead(nn.Module):
    """h: vectors of CLIP -> points of the ball, or of the plane with ``geometry="euclidean"``.

    Vectors are first brought to one norm, the same for texts and pictures: of raw ones, of norms around 10, every point
    would lie on the boundary, where the bias of a hyperbolic layer turns nothing.

    Args:
        width: D of the vectors and of the result.
        depth: number of layers, at least 1; ReLU between them.
        hidden: width between the layers; 0 for D.
        geometry: "last" makes the last layer hyperbolic, "all" every layer, "euclidean" none.
        radius: r of the ball; infinity is Euclidean too.
        bias: whether layers have one; without it a hyperbolic layer is a linear one.
        start: "clip" adds the layers' result to the vector, and begins with a last layer of zeros, so that h keeps
            every direction; "random" is torch's initialisation.
        input_norm: the norm of the vectors, above 0.
        similarity: "cosine" makes the result unit vectors; else points are returned.

    >>> TKIHead(8)(torch.randn(3, 8)).detach().norm(dim=-1).round(decimals=4)
    tensor([1., 1., 1.])
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int = 2,
        hidden: int = 0,
        geometry: str = "last",
        radius: float = 1.0,
        bias: bool = True,
        start: str = "clip",
        input_norm: float = 1.0,
        similarity: str = "cosine",
    ) -> None:
        super().__init__()
        self.radius = math.inf if geometry == "euclidean" else radius
        self.input_norm, self.is_residual, self.is_unit = input_norm, start == "clip", similarity == "cosine"
        widths = [width, *[hidden or width] * (depth - 1), width]
        radii = [self.radius if geometry == "all" or layer == depth else math.inf for layer in range(1, depth + 1)]
        layers = [
            HyperbolicLinear(before, after, radius=own, bias=bias)
            for before, after, own in zip(widths, widths[1:], radii, strict=False)
        ]
        self.layers: Any = nn.ModuleList(layers)
        if self.is_residual:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return unit vectors, or points, [..., D] of vectors [..., D] of any norm."""
        entered = F.normalize(vectors.to(self.layers[0].linear.weight.dtype), dim=-1) * self.input_norm
        x, point = entered, BallPoint(entered, torch.ones_like(entered[..., :1]))
        for number, layer in enumerate(self.layers):
            point = layer(x)
            if number + 1 < len(self.layers):
                x = F.relu(tangent_of(point, layer.radius))  # a function in the ball: exp0(ReLU(log0))
        if self.is_residual:
            point = add_points(point_of(entered, self.radius), point, self.radius)
        return F.normalize(point.x, dim=-1) if self.is_unit else point.x
