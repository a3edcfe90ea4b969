"""The Poincaré ball: identities, the three facts about the layer, its numbers in float32, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from hystar_fast.nn.hyperbolic import (
    HyperbolicLinear,
    add_points,
    distance,
    exp0,
    lift,
    log0,
    mobius_add,
    mobius_matvec,
    point_of,
    tangent_of,
)

RADII = (0.5, 1.0, 3.0)
LENGTHS = (0.0, 1e-8, 1.0, 5.0, 20.0, 80.0)


def tangents(*shape: int, length: float | None = None, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (made if length is None else F.normalize(made, dim=-1) * length).to(dtype)


@pytest.mark.parametrize("radius", RADII)
def test_the_formulas_are_those_of_the_ball(radius: float) -> None:
    u, v = tangents(7, 5), tangents(7, 5, seed=1)
    x, y, c = exp0(u, radius), exp0(v, radius), 1 / radius**2
    inner, xx, yy = (x * y).sum(-1, True), (x * x).sum(-1, True), (y * y).sum(-1, True)
    length = u.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(x, radius * torch.tanh(length / radius) * u / length, rtol=1e-14, atol=0)
    added = ((1 + 2 * c * inner + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * inner + c * c * xx * yy)
    torch.testing.assert_close(mobius_add(x, y, radius), added, rtol=1e-11, atol=1e-13)
    delta = c * (x - y).square().sum(-1) / ((1 - c * xx) * (1 - c * yy))[:, 0]
    torch.testing.assert_close(distance(x, y, radius), radius * torch.acosh(1 + 2 * delta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("radius", RADII)
def test_the_identities_of_the_ball(radius: float) -> None:
    u, x, y, z = tangents(9, 4), *(exp0(tangents(9, 4, seed=seed), radius) for seed in (1, 2, 3))
    same = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(log0(exp0(u, radius), radius), u, **same)
    torch.testing.assert_close(exp0(log0(x, radius), radius), x, **same)
    torch.testing.assert_close(mobius_add(torch.zeros_like(x), x, radius), x, **same)
    torch.testing.assert_close(mobius_add(-x, mobius_add(x, y, radius), radius), y, **same)
    assert bool((mobius_add(x, y, radius).norm(dim=-1) < radius).all())
    assert torch.equal(distance(x, y, radius), distance(y, x, radius))
    assert torch.equal(distance(x, x, radius), torch.zeros(9, dtype=torch.float64))
    assert bool((distance(x, y, radius) > 0).all())
    assert bool((distance(x, z, radius) <= distance(x, y, radius) + distance(y, z, radius) + 1e-12).all())
    torch.testing.assert_close(distance(torch.zeros_like(u), exp0(u, radius), radius), 2 * u.norm(dim=-1), **same)
    shifted = [mobius_add(z, point, radius) for point in (x, y)]
    torch.testing.assert_close(distance(*shifted, radius), distance(x, y, radius), **same)


@pytest.mark.parametrize("radius", RADII)
def test_points_with_their_gap_are_the_points_and_stay_exact(radius: float) -> None:
    u, v = tangents(6, 5) * radius / 2, tangents(6, 5, seed=4) * radius / 2
    x, y = point_of(u, radius), point_of(v, radius)
    found = add_points(x, y, radius)
    torch.testing.assert_close(found.x, mobius_add(x.x, y.x, radius), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.gap[:, 0], 1 - (found.x / radius).square().sum(-1), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(tangent_of(found, radius), log0(found.x, radius), rtol=1e-8, atol=1e-10)


def test_fact_one_a_layer_without_bias_is_the_linear_layer() -> None:
    u = tangents(6, 5)
    layer = HyperbolicLinear(5, 3, radius=0.7, bias=False).double()
    weight = layer.linear.weight
    torch.testing.assert_close(log0(layer(u).x, 0.7), u @ weight.T, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(log0(mobius_matvec(weight, exp0(u, 0.7), 0.7), 0.7), u @ weight.T, rtol=1e-9, atol=1e-12)


def test_fact_two_the_maps_keep_directions() -> None:
    u = tangents(6, 5)
    for mapped in (exp0(u, 0.6), log0(exp0(u, 0.6), 0.6)):
        torch.testing.assert_close(F.normalize(mapped, dim=-1), F.normalize(u, dim=-1), rtol=1e-12, atol=1e-13)


def test_fact_three_the_norm_of_the_input_decides_what_the_bias_does() -> None:
    bias = tangents(64, length=0.8, seed=5)
    means = {}
    for size in (0.1, 1.0, 8.0):
        u = tangents(200, 64, length=size, seed=6)
        ball = add_points(point_of(u), point_of(bias)).x
        means[size] = F.cosine_similarity(ball, u + bias).mean().item()
    assert means[1.0] < 0.95 and means[0.1] > 0.99 and means[8.0] > 0.99, means
    assert exp0(tangents(64, length=8.0)).norm().item() > 0.9999


def test_an_infinite_radius_is_the_vector_space_and_the_limit_of_large_ones() -> None:
    u = tangents(6, 5)
    layer = HyperbolicLinear(5, 3, radius=math.inf).double()
    plain = F.linear(u, layer.linear.weight, layer.linear.bias)
    assert torch.equal(layer(u).x, plain) and torch.equal(tangent_of(layer(u), math.inf), plain)
    assert torch.equal(mobius_add(u, u, math.inf), u + u) and torch.equal(log0(u, math.inf), u)
    layer.radius = 1000.0
    torch.testing.assert_close(layer(u).x, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(distance(u, -u, math.inf), 4 * u.norm(dim=-1))


def test_the_lift_ranks_as_the_distance_does() -> None:
    for radius, error in ((1.0, 1e-9), (0.5, 1e-6)):
        x, y = (exp0(tangents(1000, 8, seed=seed) / 2, radius) for seed in (7, 8))
        a, b = lift(x, radius), lift(y, radius)
        product = a[:, 0] * b[:, 0] - (a[:, 1:] * b[:, 1:]).sum(-1)
        torch.testing.assert_close(product, torch.cosh(distance(x, y, radius) / radius), rtol=error, atol=error)
        assert torch.equal(product.argsort(), distance(x, y, radius).argsort())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("radius", RADII)
def test_float32_is_finite_with_finite_gradients_at_any_length(length: float, radius: float) -> None:
    def finite(*tensors: Tensor) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    u = tangents(4, 6, length=length * radius, dtype=torch.float32).requires_grad_()
    v = tangents(4, 6, length=length * radius, seed=9, dtype=torch.float32).requires_grad_()
    opposite = -u.detach()
    x, y = exp0(u, radius), exp0(v, radius)
    assert bool((x.norm(dim=-1) < radius).all())
    point = add_points(point_of(u, radius), point_of(v, radius), radius)
    results = (
        log0(x, radius),
        mobius_add(x, y, radius),
        mobius_add(x, exp0(opposite, radius), radius),
        distance(x, y, radius),
        distance(x, x, radius),
        point.x,
        tangent_of(point, radius),
        tangent_of(add_points(point_of(u, radius), point_of(opposite, radius), radius), radius),
        mobius_matvec(torch.zeros(3, 6), x, radius),
    )
    for result in results:
        assert finite(result)
        gradients = torch.autograd.grad(result.sum(), (u, v), retain_graph=True, allow_unused=True)
        assert finite(*(gradient for gradient in gradients if gradient is not None))


def test_the_gradient_at_the_origin_is_the_identity() -> None:
    for function in (exp0, log0):
        jacobian = torch.autograd.functional.jacobian(function, torch.zeros(3))
        assert torch.equal(jacobian, torch.eye(3))
    zero = torch.zeros(2, 4, requires_grad=True)
    mobius_matvec(torch.ones(3, 4), zero).sum().backward()
    assert torch.equal(zero.grad, torch.full((2, 4), 3.0)), "no NaN and no silent zero at W x = 0"


@pytest.mark.parametrize("length", [1e-6, 0.01, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("radius", RADII)
def test_float32_is_close_to_float64(length: float, radius: float) -> None:
    u = tangents(50, 16, length=length * radius, dtype=torch.float32)
    v = tangents(50, 16, length=radius, seed=3, dtype=torch.float32)
    inside = exp0(u, radius)

    def compute(dtype: torch.dtype) -> list[Tensor]:
        a, b = point_of(u.to(dtype), radius), point_of(v.to(dtype), radius)
        added = add_points(a, b, radius)
        found = [a.x, added.x, tangent_of(added, radius), tangent_of(a, radius)]
        # log0 itself has nothing but the point: near the boundary float32 does not know its length
        return [*found, log0(inside.to(dtype), radius)] if length < 2 else found

    for found, exact in zip(compute(torch.float32), compute(torch.float64), strict=True):
        error = (found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() <= 1e-5


def test_gradcheck_of_every_function() -> None:
    u, v = (tangents(3, 4, seed=seed).requires_grad_() for seed in (1, 2))
    for radius in (0.8, 2.0):
        inside = [exp0(w.detach(), radius).requires_grad_() for w in (u, v)]
        assert gradcheck(lambda a, r=radius: exp0(a, r), (u,))
        assert gradcheck(lambda a, r=radius: log0(a, r), inside[:1])
        assert gradcheck(lambda a, b, r=radius: mobius_add(a, b, r), inside)
        assert gradcheck(lambda a, b, r=radius: distance(a, b, r), inside)
        assert gradcheck(lambda a, r=radius: lift(a, r), inside[:1])
        layer = HyperbolicLinear(4, 3, radius=radius).double()
        assert gradcheck(lambda a, w, b, m=layer: _applied(m, a, w, b), (u, layer.linear.weight, layer.linear.bias))


def _applied(layer: HyperbolicLinear, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    values = {"linear.weight": weight, "linear.bias": bias}
    return tangent_of(torch.func.functional_call(layer, values, (u,)), layer.radius)


def test_wrong_arguments_are_refused() -> None:
    x = torch.zeros(2, 3)
    for radius in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="radius must be above 0, got"):
            exp0(x, radius)
        with pytest.raises(ValueError, match="radius must be above 0, got"):
            HyperbolicLinear(3, 3, radius=radius)
    with pytest.raises(ValueError, match="radius must be finite to lift points, got inf"):
        lift(x, math.inf)
    for function in (exp0, log0, lift):
        with pytest.raises(TypeError, match=r"must be float32 or float64, got torch\.bfloat16"):
            function(x.bfloat16())
