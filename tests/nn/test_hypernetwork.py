"""Hypernetwork: Eq. 2, the sizes of Table 9 and both initialisations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.hypernetwork import Hypernetwork
from tests.support.tolerance import relative_error


@pytest.mark.parametrize(
    ("hidden", "depth", "count", "published"),
    [
        (1024, 2, 1_837_056, "1.8M"),
        (None, 2, 3_673_088, "3.7M"),
        (4096, 2, 7_345_152, "7.3M"),
        (None, 1, 787_456, "0.8M"),
        (None, 3, 7_869_440, "7.9M"),
    ],
)
def test_parameter_counts_of_table_9(hidden: int | None, depth: int, count: int, published: str) -> None:
    network = Hypernetwork(768, 1024, hidden, depth, device="meta")
    total = sum(parameter.numel() for parameter in network.parameters())
    assert total == count
    assert f"{total / 1e6:.1f}M" == published
    assert network(torch.empty(2, 768, device="meta")).shape == (2, 1024)


def test_four_blocks_of_vit_l_add_14_7_million() -> None:
    networks = nn.ModuleList(Hypernetwork(768, 1024, device="meta") for _ in range(4))
    assert f"{sum(parameter.numel() for parameter in networks.parameters()) / 1e6:.1f}" == "14.7"


def test_equation_2() -> None:
    network = Hypernetwork(5, 3, dtype=torch.float64)
    assert network.hidden == 6
    z = torch.randn(4, 5, dtype=torch.float64)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in network.layers)
    expected = (z @ w1.T + b1).clamp_min(0) @ w2.T + b2
    assert relative_error(network(z), expected) < 1e-12
    assert relative_error(network(z[0]), expected[0]) < 1e-12
    assert network(z[:0]).shape == (0, 3)


def test_offsets_start_small_but_not_at_zero() -> None:
    """Kaiming's weights keep the mean square from layer to layer; the last one has no ReLU and doubles it."""
    z = nn.functional.normalize(torch.randn(64, 768), dim=-1)
    for depth in (2, 3):
        network = Hypernetwork(768, 256, depth=depth)
        size = network(z).square().mean().sqrt().item()
        assert size == pytest.approx((2 / 768) ** 0.5, rel=0.1)  # 0.05, beside singular values of order one
        assert not any(layer.bias.any() for layer in network.layers)


def test_zero_init_starts_at_the_original_and_still_learns() -> None:
    linear = nn.Linear(8, 6)
    layer, network = FastSVDLinear.from_linear(linear), Hypernetwork(4, 6, init="zero")
    x, z = torch.randn(3, 5, 8), torch.randn(3, 4)
    assert not network(z).any()
    assert relative_error(layer(x, network(z)), linear(x)) < 1e-5
    layer(x, network(z)).square().sum().backward()
    assert network.layers[-1].weight.grad.any()
    network.reset_parameters()
    assert not network(z).any()


def test_gradients_reach_every_parameter_and_the_style() -> None:
    network, layer = Hypernetwork(4, 6, depth=3), FastSVDLinear(8, 6)
    z = torch.randn(3, 4, requires_grad=True)
    layer(torch.randn(3, 5, 8), network(z)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in [z, *network.parameters()])


def test_state_dict_and_autocast() -> None:
    first, second = Hypernetwork(4, 6), Hypernetwork(4, 6)
    second.load_state_dict(first.state_dict())
    z = torch.randn(3, 4)
    assert torch.equal(first(z), second(z))
    with torch.autocast("cpu", torch.bfloat16):
        y = first(z)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, second(z)) < 0.02
    assert "style_dim=4, rank=6, hidden=12, depth=2" in repr(first)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Hypernetwork(0, 4), ValueError, "style_dim must be at least 1, got 0"),
        (lambda: Hypernetwork(4, "6"), TypeError, "rank must be an int, got str"),  # type: ignore[arg-type]
        (lambda: Hypernetwork(4, 6, 0), ValueError, "hidden must be at least 1, got 0"),
        (lambda: Hypernetwork(4, 6, depth=0), ValueError, "depth must be at least 1, got 0"),
        (lambda: Hypernetwork(4, 6, depth=True), TypeError, "depth must be an int, got bool"),
        (lambda: Hypernetwork(4, 6, init="xavier"), ValueError, "init must be 'kaiming' or 'zero', got 'xavier'"),
        (lambda: Hypernetwork(4, 6)(torch.ones(2, 5)), ValueError, r"z must be \[\.\.\., 4\], got shape \(2, 5\)"),
        (lambda: Hypernetwork(4, 6)(torch.tensor(1.0)), ValueError, r"z must be \[\.\.\., 4\], got shape \(\)"),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
