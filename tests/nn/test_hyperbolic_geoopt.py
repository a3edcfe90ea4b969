"""The Poincaré ball of this package against that of geoopt, in float64."""

from __future__ import annotations

import geoopt
import pytest
import torch

from hystar_fast.nn.hyperbolic import HyperbolicLinear, distance, exp0, log0, mobius_add, mobius_matvec


@pytest.mark.parametrize("radius", [0.5, 1.0, 3.0])
def test_every_function_is_that_of_geoopt(radius: float) -> None:
    ball = geoopt.PoincareBall(c=torch.tensor(1 / radius**2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 50, 8, generator=generator, dtype=torch.float64) * radius / 2
    weight = torch.randn(6, 8, generator=generator, dtype=torch.float64) / 4
    x, y = exp0(u, radius), exp0(v, radius)
    layer = HyperbolicLinear(8, 6, radius=radius).double()
    bias = ball.expmap0(layer.linear.bias)
    pairs = {
        "exp0": (x, ball.expmap0(u)),
        "log0": (log0(x, radius), ball.logmap0(x)),
        "mobius_add": (mobius_add(x, y, radius), ball.mobius_add(x, y)),
        "mobius_matvec": (mobius_matvec(weight, x, radius), ball.mobius_matvec(weight, x)),
        "distance": (distance(x, y, radius), ball.dist(x, y)),
        "layer": (layer(u).x, ball.mobius_add(ball.mobius_matvec(layer.linear.weight, x), bias)),
    }
    for name, (found, theirs) in pairs.items():
        assert (found - theirs).abs().max().item() <= 1e-10, name
