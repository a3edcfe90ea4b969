"""FastSVDLinear with other parts of torch: saving, casting, moving, compiling, autocast, checkpointing, threads."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from tests.support.svd_layers import make, modulated
from tests.support.tolerance import relative_error


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# Saving and loading


def test_state_dict_round_trip() -> None:
    for rank in (None, 5):
        _, layer = make(rank=rank)
        with torch.no_grad():
            layer.delta_s_static.normal_()
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        x, delta_s = torch.randn(4, 13).double(), torch.randn(4, layer.rank)
        for device in ("cpu", "meta"):
            other = FastSVDLinear(13, 17, rank=rank, device=device, dtype=torch.float64)
            other.load_state_dict(state, strict=True, assign=device == "meta")
            assert torch.equal(other(x, delta_s), layer(x, delta_s))
            assert [n for n, p in other.named_parameters() if p.requires_grad] == ["delta_s_static"]


def test_the_static_offset_alone_restores_a_trained_layer() -> None:
    linear, layer = make()
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["delta_s_static"]
    assert not layer.delta_s_static.any()
    with torch.no_grad():
        layer.delta_s_static.normal_()
    other = FastSVDLinear.from_linear(linear)
    outcome = other.load_state_dict({"delta_s_static": layer.delta_s_static}, strict=False)
    assert not outcome.unexpected_keys
    x = torch.randn(4, 13, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_nn_linear_loads(rank: int | None, assign: bool) -> None:
    plain = nn.Sequential(nn.Linear(13, 17), nn.Linear(17, 3)).double()
    ours = nn.Sequential(FastSVDLinear(13, 17, rank=rank), FastSVDLinear(17, 3)).double()
    with torch.no_grad():
        ours[0].delta_s_static.normal_()
    state = plain.state_dict()
    ours.load_state_dict(state, assign=assign)
    assert set(state) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    x = torch.randn(4, 13, dtype=torch.float64)
    assert relative_error(ours(x), plain(x)) < 1e-12
    assert ours[0].delta_s_static.requires_grad
    assert not ours[0].u.requires_grad


def test_a_checkpoint_of_nn_linear_of_another_size_is_rejected() -> None:
    layer = FastSVDLinear(13, 17)
    with pytest.raises(RuntimeError, match=r"mismatch for weight: it must have shape \(17, 13\), got \(13, 17\)"):
        layer.load_state_dict(nn.Linear(17, 13).state_dict())


def test_copies_are_independent() -> None:
    _, layer = make(rank=5)
    x = torch.randn(4, 13, dtype=torch.float64)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)
        with torch.no_grad():
            other.delta_s_static.fill_(1.0)
            other.u.zero_()
        assert torch.equal(layer(x), y)


def test_from_linear_does_not_change_its_source() -> None:
    linear, layer = make(rank=5)
    x = torch.randn(4, 13, dtype=torch.float64)
    y = layer(x)
    assert all(parameter.requires_grad for parameter in linear.parameters())
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert torch.equal(layer(x), y)
    assert not FastSVDLinear.from_linear(linear.eval()).training


# Casting and moving


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [None, 5])
def test_offsets_keep_their_precision_in_a_half_precision_layer(dtype: torch.dtype, rank: int | None) -> None:
    linear, layer = make(dtype=torch.float32, rank=rank)
    layer(torch.randn(2, 13)).sum().backward()
    with torch.no_grad():
        layer.delta_s_static.fill_(1e-3)
    s, static, grad = layer.s.clone(), layer.delta_s_static.clone(), layer.delta_s_static.grad.clone()
    assert layer.to(dtype) is layer
    assert (layer.u.dtype, layer.vh.dtype, layer.bias.dtype, layer.weight.dtype) == (dtype,) * 4
    assert torch.equal(layer.s, s)
    assert torch.equal(layer.delta_s_static, static)
    assert torch.equal(layer.delta_s_static.grad, grad)
    x = torch.randn(2, 3, 13)
    y = layer(x.to(dtype), torch.zeros(2, layer.rank))
    assert y.dtype == dtype
    assert relative_error(y, linear(x)) < 0.02
    y.sum().backward()
    assert layer.delta_s_static.grad.dtype == torch.float32
    torch.optim.SGD([layer.delta_s_static], lr=1e-6).step()
    assert not torch.equal(layer.delta_s_static, static)


def test_double_and_back() -> None:
    linear, layer = make(dtype=torch.float32)
    layer.double()
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    layer.float()
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
    x = torch.randn(2, 13)
    assert relative_error(layer(x), linear(x)) < 1e-5
    half = FastSVDLinear.from_linear(linear.half())
    assert (half.u.dtype, half.s.dtype, half.delta_s_static.dtype) == (torch.float16, torch.float32, torch.float32)


def test_meta_device() -> None:
    with torch.device("meta"):
        layer = FastSVDLinear(13, 17, rank=5, dtype=torch.float16)
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert layer.weight.device.type == "meta"
    x, delta_s = torch.empty(2, 3, 13, device="meta", dtype=torch.float16), torch.empty(2, 5, device="meta")
    assert layer(x, delta_s).shape == (2, 3, 17)
    assert layer.merge().weight.is_meta
    assert FastSVDLinear.from_linear(nn.Linear(13, 17, device="meta")).u.is_meta
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    linear, x = nn.Linear(13, 17, dtype=torch.float16), torch.randn(2, 13, dtype=torch.float16)
    assert torch.equal(layer.delta_s_static, torch.zeros(5))
    assert relative_error(layer(x), linear(x)) < 2e-3


# The rest of torch


@pytest.mark.parametrize("rank", [None, 5])
def test_compiles_without_a_graph_break(rank: int | None) -> None:
    _, layer = make(rank=rank)
    x = torch.randn(4, 3, 13, dtype=torch.float64, requires_grad=True)
    delta_s = torch.randn(4, layer.rank, dtype=torch.float64, requires_grad=True)
    bank, index = torch.randn(2, layer.rank), torch.tensor([0, 1, 1, 0])

    def step(x: Tensor, delta_s: Tensor) -> Tensor:
        x = x.to(layer.weight.dtype)
        return layer(x) + layer(x, delta_s) + layer(x, bank, index=index)

    eager, compiled = step(x, delta_s), torch.compile(step, fullgraph=True, backend="aot_eager")(x, delta_s)
    assert relative_error(compiled, eager) < 1e-12
    inputs = [x, delta_s, layer.delta_s_static]
    grads = zip(torch.autograd.grad(compiled.sum(), inputs), torch.autograd.grad(eager.sum(), inputs), strict=True)
    assert all(relative_error(ours, truth) < 1e-12 for ours, truth in grads)


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("keep_remainder", [True, False])
@pytest.mark.parametrize("form", ["shared", "sample", "bank"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(rank: int | None, keep_remainder: bool, form: str, dtype: torch.dtype) -> None:
    """The offsets are as large as the singular values, so a dropped one is larger than the rounding error."""
    linear, layer = make(64, 48, rank, keep_remainder, dtype=torch.float32)
    layer.bias.requires_grad_()  # type: ignore[union-attr]
    index = torch.tensor([2, 0, 2, 1]) if form == "bank" else None
    rows = {"shared": (), "sample": (4,), "bank": (3,)}[form]
    x, delta_s = torch.randn(4, 3, 64, requires_grad=True), torch.randn(*rows, layer.rank, requires_grad=True)
    with torch.no_grad():
        layer.delta_s_static.normal_()
    inputs = [x, delta_s, layer.delta_s_static, layer.bias]
    with torch.autocast("cpu", dtype):
        y, static = layer(x, delta_s.to(dtype), index=index), layer(x)
        weight, plain = layer.weight.clone(), linear(x)
    assert y.dtype == static.dtype == plain.dtype == dtype
    assert weight.dtype == torch.float32

    def exact(offset: Tensor) -> Tensor:
        weights = modulated(linear, layer, offset).expand(4, 48, 64)
        return torch.einsum("btd,bod->bto", x.double(), weights) + layer.bias  # type: ignore[operator]

    sample = delta_s if index is None else delta_s[index]
    truth = exact(layer.delta_s_static + sample)
    assert relative_error(y, truth) < 0.012
    assert relative_error(static, exact(layer.delta_s_static)) < 0.012
    assert relative_error(weight, modulated(linear, layer, layer.delta_s_static.detach())) < 1e-6
    assert min(relative_error(exact(offset), truth) for offset in (layer.delta_s_static, sample)) > 0.1
    dy = torch.randn_like(truth)
    for gradient, expected in zip(
        torch.autograd.grad(y, inputs, dy.to(dtype)), torch.autograd.grad(truth, inputs, dy), strict=True
    ):
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, expected) < 0.02


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_with_the_same_style(use_reentrant: bool) -> None:
    _, layer = make()
    x = torch.randn(4, 3, 13, dtype=torch.float64, requires_grad=True)
    styles = torch.randn(2, 4, 13, dtype=torch.float64, requires_grad=True)

    def loss(call: Callable[..., Tensor]) -> Tensor:
        return sum((call(x, style) ** 2).sum() for style in styles)  # type: ignore[return-value]

    inputs = [x, styles, layer.delta_s_static]
    expected = torch.autograd.grad(loss(layer), inputs)
    loss(lambda x, style: checkpoint(layer, x, style, use_reentrant=use_reentrant)).backward()
    for tensor, grad in zip(inputs, expected, strict=True):
        assert relative_error(tensor.grad, grad) < 1e-12


def test_threads_do_not_mix_their_styles() -> None:
    _, layer = make(33, 31)
    x, styles = torch.randn(8, 5, 33).double(), torch.randn(16, 8, 31)
    with torch.no_grad():
        expected = [layer(x, style) for style in styles]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda style: layer(x, style).detach(), [*styles] * 4))
    assert all(relative_error(result, expected[i % 16]) < 1e-12 for i, result in enumerate(results))
    assert relative_error(expected[0], expected[1]) > 1e-3


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("shape", [(4, 13), (4, 3, 13)])
def test_in_place_operations_on_the_output_keep_gradients(rank: int | None, shape: tuple[int, ...]) -> None:
    _, layer = make(rank=rank)
    x, delta_s = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(4, layer.rank)
    for style in (None, delta_s):
        y = layer(x, style)
        (grad,) = torch.autograd.grad((2 * y + 1).relu().square().sum(), x)
        y = layer(x, style).mul_(2)
        y += 1
        assert relative_error(torch.autograd.grad(y.relu_().square().sum(), x)[0], grad) < 1e-12


def test_functional_call_and_training() -> None:
    linear, layer = make(dtype=torch.float32)
    x = torch.randn(64, 13)
    target = F.linear(x, modulated(linear, layer, torch.randn(13)).float(), linear.bias).detach()
    y = torch.func.functional_call(layer, {"delta_s_static": torch.ones(13)}, (x,))
    assert relative_error(y, layer(x, torch.ones(13))) < 1e-5
    frozen = {name: p.clone() for name, p in layer.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        losses.append(F.mse_loss(layer(x), target))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 1e-3 * losses[0]
    assert all(torch.equal(layer.get_parameter(name), value) for name, value in frozen.items())


def test_repr() -> None:
    assert repr(FastSVDLinear(13, 17)) == "FastSVDLinear(in_features=13, out_features=17, bias=True, rank=13)"
    truncated = "FastSVDLinear(in_features=13, out_features=17, bias=False, rank=5, keep_remainder=True)"
    assert repr(FastSVDLinear(13, 17, bias=False, rank=5)) == truncated
