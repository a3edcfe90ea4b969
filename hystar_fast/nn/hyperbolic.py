"""The Poincaré ball: exponential map, logarithm, Möbius addition, distance, and a linear layer in it.

The ball of radius r has curvature -c, c = 1 / r²; points are ‖x‖ < r. Every function is exact in float64 and keeps its
gradient finite in float32 for vectors of any length. What cancels near the boundary, 1 - c‖x‖², is never a difference
here where the tangent vector of a point is known: of x = exp0(u) it is sech²(‖u‖ / r).

Source: Ganea, Bécigneul, Hofmann: Hyperbolic Neural Networks (NeurIPS 2018).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EUCLIDEAN = math.inf  # the radius at which every function is that of a vector space
_LEAST = 1e-30  # a length that stands for 0 where something is divided by it


class BallPoint(NamedTuple):
    """Points of the ball that still know how far they are from its boundary.

    Attributes:
        x: [..., d].
        gap: [..., 1], 1 - c‖x‖², exact where the difference would cancel.
    """

    x: Tensor
    gap: Tensor


def exp0(u: Tensor, radius: float = 1.0) -> Tensor:
    """Map tangent vectors of the origin into the ball: r tanh(‖u‖ / r) u / ‖u‖, and 0 for 0.

    Args:
        u: [..., d], float32 or float64.
        radius: r of the ball, above 0; infinity gives u.

    Returns:
        [..., d], of norm below r.

    Raises:
        ValueError, TypeError: a radius that is not above 0, or another dtype.

    >>> exp0(torch.tensor([0.0, 100.0]), radius=2.0).round(decimals=4)
    tensor([0., 2.])
    """
    return point_of(u, radius).x


def log0(y: Tensor, radius: float = 1.0) -> Tensor:
    """Map points of the ball to tangent vectors of the origin: r artanh(‖y‖ / r) y / ‖y‖, the inverse of `exp0`.

    Points on the boundary, and outside, are taken as the nearest representable ones inside: a point of float32 says no
    more. `tangent_of` is exact there.

    Args:
        y: [..., d], float32 or float64.
        radius: r of the ball.

    Raises:
        ValueError, TypeError: as of `exp0`.

    >>> log0(exp0(torch.tensor([0.3, 0.4]))).round(decimals=6)
    tensor([0.3000, 0.4000])
    """
    _check(radius, y)
    if math.isinf(radius):
        return y
    length = _length(y, radius)
    inside = length.clamp(max=_largest(y))
    return y * (torch.atanh(inside) / length)


def mobius_add(x: Tensor, y: Tensor, radius: float = 1.0) -> Tensor:
    """Add points of the ball: x ⊕ y; 0 ⊕ y = y and (-x) ⊕ (x ⊕ y) = y, but x ⊕ y is not y ⊕ x.

    x ⊕ y = [(1 + 2c⟨x, y⟩ + c‖y‖²) x + (1 - c‖x‖²) y] / [1 + 2c⟨x, y⟩ + c²‖x‖²‖y‖²]

    Args:
        x, y: [..., d], float32 or float64; their leading shapes broadcast.
        radius: r of the ball; infinity gives x + y.

    Raises:
        ValueError, TypeError: as of `exp0`.

    >>> mobius_add(torch.tensor([0.5]), torch.tensor([0.5]))
    tensor([0.8000])
    """
    _check(radius, x, y)
    if math.isinf(radius):
        return x + y
    return add_points(_of_point(x, radius), _of_point(y, radius), radius).x


def mobius_matvec(weight: Tensor, x: Tensor, radius: float = 1.0) -> Tensor:
    """Apply a matrix to points of the ball: W ⊗ x = exp0(W log0(x)).

    In this form nothing is divided by ‖Wx‖, so W ⊗ x = 0 has a gradient.

    Args:
        weight: [e, d].
        x: [..., d].
        radius: r of the ball.

    Returns:
        [..., e].

    Raises:
        ValueError, TypeError: as of `exp0`.

    >>> mobius_matvec(torch.zeros(3, 2), torch.tensor([0.1, 0.2]))
    tensor([0., 0., 0.])
    """
    return exp0(F.linear(log0(x, radius), weight), radius)


def distance(x: Tensor, y: Tensor, radius: float = 1.0) -> Tensor:
    """Return the geodesic distance of points: 2r arsinh √δ with δ = c‖x - y‖² / ((1 - c‖x‖²)(1 - c‖y‖²)).

    It equals r arcosh(1 + 2δ), and is exact for close points, where arcosh is not.

    Args:
        x, y: [..., d], float32 or float64; their leading shapes broadcast.
        radius: r of the ball; infinity gives 2‖x - y‖, the limit.

    Returns:
        [...].

    Raises:
        ValueError, TypeError: as of `exp0`.

    >>> round(distance(torch.zeros(2), exp0(torch.tensor([3.0, 4.0]), 2.0), 2.0).item(), 3)
    10.0
    """
    _check(radius, x, y)
    apart = torch.linalg.vector_norm(x - y, dim=-1)
    if math.isinf(radius):
        return 2 * apart
    gaps = _of_point(x, radius).gap[..., 0] * _of_point(y, radius).gap[..., 0]
    return 2 * radius * torch.asinh(apart / (radius * gaps.sqrt()))


def lift(x: Tensor, radius: float = 1.0) -> Tensor:
    """Lift points to the hyperboloid: ((1 + c‖x‖²), 2√c x) / (1 - c‖x‖²), in float64.

    cosh(d(x, y) / r) = x₀y₀ - ⟨x⃗, y⃗⟩ of the lifted points. So the nearest points of a query are those of the largest
    inner product with `(-x₀, x⃗)`.

    Args:
        x: [..., d], float32 or float64.
        radius: r of the ball, finite.

    Returns:
        [..., 1 + d], float64: in float32 the difference would cancel.

    Raises:
        ValueError, TypeError: as of `exp0`, or an infinite radius.

    >>> lift(torch.zeros(2))
    tensor([1., 0., 0.], dtype=torch.float64)
    """
    _check(radius, x)
    if math.isinf(radius):
        raise ValueError("radius must be finite to lift points, got inf")
    points = _of_point(x.double(), radius)
    return torch.cat([2 - points.gap, points.x * (2 / radius)], dim=-1) / points.gap


def point_of(u: Tensor, radius: float = 1.0) -> BallPoint:
    """Return exp0(u) with its exact distance to the boundary; at an infinite radius u, with a gap of 1.

    Raises:
        ValueError, TypeError: as of `exp0`.
    """
    _check(radius, u)
    if math.isinf(radius):
        return BallPoint(u, torch.ones_like(u[..., :1]))
    length = _length(u, radius)
    decay = torch.exp(-length)  # sech without overflow
    gap = (2 * decay / (1 + decay * decay)).square()
    return BallPoint(u * (torch.tanh(length).clamp(max=_largest(u)) / length), gap)


def tangent_of(point: BallPoint, radius: float = 1.0) -> Tensor:
    """Return log0 of points whose gap is known: exact up to the boundary.

    artanh(t) = log(1 + t) - log(1 - t²) / 2, of which the second term is the gap.
    """
    if math.isinf(radius):
        return point.x
    length = _length(point.x, radius)
    near = torch.atanh(length.clamp(max=0.5))  # where log(1 + t) alone would round
    far = torch.log1p(length) - point.gap.clamp(min=_LEAST).log() / 2
    return point.x * (torch.where(length < 0.5, near, far) / length)


def add_points(x: BallPoint, y: BallPoint, radius: float = 1.0) -> BallPoint:
    """Return x ⊕ y with its gap, as of `mobius_add`; no term is a difference.

    With s = c‖x + y‖²: 1 + 2c⟨x, y⟩ + c‖y‖² = s + gap(x), the denominator is s + gap(x) gap(y), and the gap of the sum
    is gap(x) gap(y) over the denominator.
    """
    if math.isinf(radius):
        return BallPoint(x.x + y.x, torch.ones_like(x.gap * y.gap))
    both = x.gap * y.gap
    length = ((x.x + y.x) / radius).square().sum(-1, keepdim=True)
    below = (length + both).clamp(min=torch.finfo(both.dtype).tiny * 1000)  # opposite points
    return BallPoint(((length + x.gap) * x.x + x.gap * y.x) / below, both / below)


class HyperbolicLinear(nn.Module):
    """A linear layer into the ball: H(u) = exp0(W u) ⊕ exp0(b), of tangent vectors u = log0(x).

    This is (W ⊗ x) ⊕ exp0(b) of the point x = exp0(u). Both parameters are Euclidean, so Adam needs no change. Without
    the bias it is the plain linear layer: log0(W ⊗ exp0(u)) = W u.

    Args:
        in_features, out_features: d and e.
        radius: r of the ball; infinity makes it nn.Linear.
        bias: whether there is a b.

    Raises:
        ValueError: a radius that is not above 0.

    >>> HyperbolicLinear(4, 3, radius=2.0)(torch.zeros(5, 4)).x.shape
    torch.Size([5, 3])
    """

    def __init__(self, in_features: int, out_features: int, *, radius: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        _check(radius)
        self.radius = radius
        self.linear = nn.Linear(in_features, out_features, bias)

    def forward(self, u: Tensor) -> BallPoint:
        """Return the points [..., e] of tangent vectors [..., d]."""
        moved = point_of(F.linear(u, self.linear.weight), self.radius)
        if self.linear.bias is None:
            return moved
        return add_points(moved, point_of(self.linear.bias, self.radius), self.radius)


def _check(radius: float, *vectors: Tensor) -> None:
    if not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}")
    for vector in vectors:
        if vector.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"vectors of the ball must be float32 or float64, got {vector.dtype}")


def _length(vectors: Tensor, radius: float) -> Tensor:
    """Return ‖v‖ / r [..., 1], never 0, with the gradient 0 at v = 0."""
    return (torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) / radius).clamp(min=_LEAST)


def _largest(vectors: Tensor) -> float:
    """Return the largest ‖x‖ / r that stays below 1 when its vector is rounded."""
    return 1 - 4 * torch.finfo(vectors.dtype).eps


def _of_point(x: Tensor, radius: float) -> BallPoint:
    """Return a point with 1 - c‖x‖², at least that of the largest length inside."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / radius
    length = length.clamp(max=_largest(x))
    return BallPoint(x, (1 - length) * (1 + length))
