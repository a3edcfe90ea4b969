"""The head of TKI: it begins as CLIP, its geometry is real, and its sizes are those of the paper's models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

from hystar_fast.methods.tki.tki_head import GEOMETRIES, TKIHead


def vectors(count: int = 50, width: int = 32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)) * 7


def angle(first: Tensor, second: Tensor) -> float:
    return (1 - F.cosine_similarity(first, second, dim=-1)).mean().item()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_clip_start_keeps_every_direction_and_has_a_gradient(geometry: str, similarity: str) -> None:
    head, x = TKIHead(32, geometry=geometry, similarity=similarity), vectors()
    found = head(x)
    torch.testing.assert_close(F.normalize(found, dim=-1), F.normalize(x, dim=-1), rtol=0, atol=1e-6)
    assert similarity == "dot" or torch.allclose(found.norm(dim=-1), torch.ones(50))
    (found * torch.linspace(-1, 1, 32)).sum().backward()
    last = head.layers[-1].linear
    assert bool(last.weight.grad.abs().max() > 0) and bool(last.bias.grad.isfinite().all())


@pytest.mark.parametrize("norm", [0.1, 10.0])
def test_the_norm_of_a_vector_does_not_matter(norm: float) -> None:
    head, x = TKIHead(32, start="random"), vectors()
    torch.testing.assert_close(head(x), head(x * norm), rtol=0, atol=1e-6)


def aligned(geometry: str, radius: float, bias: float, like: TKIHead | None = None) -> TKIHead:
    """Return a head of random start whose last W u has about norm 1 and whose biases have a norm, or are 0."""
    torch.manual_seed(1)
    head = TKIHead(32, geometry=geometry, radius=radius, start="random")
    for layer in head.layers:
        nn.init.orthogonal_(layer.linear.weight)
        layer.linear.bias.data = F.normalize(torch.randn(32), dim=0) * bias
    with torch.no_grad():
        head.layers[-1].linear.weight.mul_(math.sqrt(2))  # ReLU halves the square of the norm
    return head


@pytest.mark.parametrize("geometry", ["last", "all"])
def test_the_radius_changes_directions_through_the_bias_and_through_nothing_else(geometry: str) -> None:
    x = vectors()
    with torch.no_grad():
        ball, plane = (aligned(geometry, radius, 0.5)(x) for radius in (1.0, math.inf))
        assert angle(ball, plane) > 0.01
        ball, plane = (aligned(geometry, radius, 0.0)(x) for radius in (1.0, math.inf))
        torch.testing.assert_close(ball, plane, rtol=0, atol=1e-6)
        assert torch.equal(aligned(geometry, math.inf, 0.5)(x), aligned("euclidean", 1.0, 0.5)(x))


def test_points_of_the_ball_stay_inside() -> None:
    for start in ("clip", "random"):
        head = TKIHead(32, radius=0.5, input_norm=3.0, start=start, similarity="poincare")
        assert bool((head(vectors()).norm(dim=-1) < 0.5).all())


@pytest.mark.parametrize(("width", "count"), [(512, 525_312), (768, 1_181_184), (1024, 2_099_200)])
def test_the_number_of_parameters(width: int, count: int) -> None:
    with torch.device("meta"):
        head = TKIHead(width)
    assert sum(parameter.numel() for parameter in head.parameters()) == count


def test_depth_and_width_are_those_asked_for() -> None:
    head = TKIHead(8, depth=3, hidden=5)
    assert [tuple(layer.linear.weight.shape) for layer in head.layers] == [(5, 8), (5, 5), (8, 5)]
    assert [layer.radius for layer in head.layers] == [math.inf, math.inf, 1.0]
    assert [layer.radius for layer in TKIHead(8, geometry="all", radius=2.0).layers] == [2.0, 2.0]
    assert TKIHead(8, depth=1, bias=False, geometry="euclidean").layers[0].linear.bias is None


@pytest.mark.parametrize("geometry", ["last", "all"])
def test_gradcheck_of_the_head(geometry: str) -> None:
    torch.manual_seed(0)
    head = TKIHead(4, geometry=geometry, start="random", similarity="dot").double()
    x = vectors(3, 4).double().requires_grad_()
    assert gradcheck(head, (x,))
