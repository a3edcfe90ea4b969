"""FastSVDLinear: equal to its nn.Linear at zero offset, to W + u diag(delta_s) vh at others; the read-only weight."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.ref.svd_linear import svd_linear
from tests.support.shapes import SVD_LINEAR
from tests.support.svd_layers import make, modulated
from tests.support.tolerance import assert_as_accurate, relative_error

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# At zero offset


@pytest.mark.parametrize(("batch", "tokens", "in_features", "out_features", "rank"), SVD_LINEAR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_layer_it_was_built_from(
    batch: int, tokens: int, in_features: int, out_features: int, rank: int, dtype: torch.dtype
) -> None:
    linear, layer = make(in_features, out_features, dtype=dtype)
    x = torch.randn(batch, tokens, in_features, dtype=dtype)
    assert relative_error(layer(x), linear(x)) < LIMIT[dtype]
    assert relative_error(layer(x, torch.zeros(batch, layer.rank)), linear(x)) < LIMIT[dtype]
    truncated = FastSVDLinear.from_linear(linear, rank)
    assert relative_error(truncated(x), linear(x)) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_with_a_remainder_it_equals_the_layer_bit_for_bit(dtype: torch.dtype) -> None:
    linear, layer = make(rank=5, dtype=dtype)
    x = torch.randn(4, 3, 13, dtype=dtype)
    assert torch.equal(layer(x), linear(x))
    assert torch.equal(layer.weight, linear.weight)


def test_without_bias_or_remainder() -> None:
    linear, layer = make(bias=False, rank=5, keep_remainder=False)
    assert layer.bias is None
    assert layer.base_weight is None
    x = torch.randn(4, 3, 13, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
    assert relative_error(layer(x), x @ ((u[:, :5] * s[:5]) @ vh[:5]).T) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_accurate_as_the_reference(dtype: torch.dtype) -> None:
    linear, layer = make(64, 96, dtype=dtype)
    x, delta_s = torch.randn(4, 9, 64).to(dtype), 0.1 * torch.randn(4, 64)
    same = svd_linear(x, layer.u, layer.s + delta_s, layer.vh, layer.bias)
    truth = torch.einsum("btd,bod->bto", x.double(), modulated(linear, layer, delta_s)) + linear.bias.double()
    assert_as_accurate(layer(x, delta_s), same, truth)


def test_a_new_layer_is_initialised_as_nn_linear(tmp_path: Path) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(13, 17)
    torch.manual_seed(3)
    layer = FastSVDLinear(13, 17)
    assert relative_error(layer.weight, linear.weight) < 1e-6
    assert torch.equal(layer.bias, linear.bias)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*.safetensors"))  # random weights are not cached
    assert FastSVDLinear(13, 17, bias=False, rank=4, dtype=torch.float64)(torch.ones(2, 13).double()).shape == (2, 17)


# With offsets


@pytest.mark.parametrize(("rank", "keep_remainder"), [(None, True), (5, True), (5, False)])
@pytest.mark.parametrize("form", ["static", "shared", "sample", "bank"])
def test_offsets_and_their_gradients_equal_those_of_a_materialised_weight(
    rank: int | None, keep_remainder: bool, form: str
) -> None:
    linear, layer = make(rank=rank, keep_remainder=keep_remainder)
    layer.bias.requires_grad_()  # type: ignore[union-attr]
    index = torch.tensor([2, 0, 2, 1]) if form == "bank" else None
    rows = {"static": (), "shared": (), "sample": (4,), "bank": (3,)}[form]
    x = torch.randn(4, 6, 13, dtype=torch.float64, requires_grad=True)
    delta_s = torch.randn(*rows, layer.rank, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.delta_s_static.normal_()
    ours = layer(x) if form == "static" else layer(x, delta_s, index=index)
    offset = layer.delta_s_static + (0 if form == "static" else delta_s if index is None else delta_s[index])
    weight = modulated(linear, layer, offset).expand(4, 17, 13)
    truth = torch.einsum("btd,bod->bto", x, weight) + layer.bias
    assert relative_error(ours, truth) < 1e-12
    inputs = [x, layer.delta_s_static, layer.bias] + ([] if form == "static" else [delta_s])
    dy = torch.randn_like(truth)
    for grad, expected in zip(
        torch.autograd.grad(ours, inputs, dy), torch.autograd.grad(truth, inputs, dy), strict=True
    ):
        assert relative_error(grad, expected) < 1e-12


@given(seed=st.integers(0, 999), factor=st.floats(-3, 3), rank=st.sampled_from([None, 3]))
def test_linear_in_the_offset(seed: int, factor: float, rank: int | None) -> None:
    torch.manual_seed(seed)
    _, layer = make(7, 5, rank)
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    a, b = torch.randn(2, 3, layer.rank, dtype=torch.float64)
    with torch.no_grad():
        moved = layer(x, a + factor * b) - layer(x)
        expected = layer(x, a) - layer(x) + factor * (layer(x, b) - layer(x))
    assert (moved - expected).norm() <= 1e-12 * (1 + expected.norm())


@given(seed=st.integers(0, 999))
def test_samples_are_independent(seed: int) -> None:
    torch.manual_seed(seed)
    _, layer = make(7, 5)
    x, delta_s, order = torch.randn(6, 2, 7).double(), torch.randn(6, 5), torch.randperm(6)
    y = layer(x, delta_s)
    assert relative_error(layer(x[order], delta_s[order]), y[order]) < 1e-12
    delta_s[2] = torch.nan
    poisoned = layer(x, delta_s)
    assert poisoned[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert relative_error(poisoned[others], y[others]) < 1e-12


@pytest.mark.parametrize("shape", [(13,), (4, 13), (4, 2, 3, 13)])
def test_leading_shapes(shape: tuple[int, ...]) -> None:
    linear, layer = make()
    x = torch.randn(shape, dtype=torch.float64)
    assert relative_error(layer(x), linear(x)) < 1e-12
    if len(shape) > 1:
        delta_s = torch.randn(4, 13)
        rows = [F.linear(x[b], modulated(linear, layer, delta_s[b]), linear.bias) for b in range(4)]
        assert relative_error(layer(x, delta_s), torch.stack(rows)) < 1e-12


# The weight


def test_the_weight_has_the_static_offset_folded_in() -> None:
    linear, layer = make()
    assert relative_error(layer.weight, linear.weight) < 1e-12
    with torch.no_grad():
        layer.delta_s_static.normal_()
    weight = layer.weight
    assert relative_error(weight, modulated(linear, layer, layer.delta_s_static.detach())) < 1e-12
    x = torch.randn(3, 13, dtype=torch.float64, requires_grad=True)
    assert relative_error(F.linear(x, weight, layer.bias), layer(x)) < 1e-12
    assert weight.requires_grad and not weight.detach().requires_grad
    F.linear(x, weight).sum().backward()
    assert relative_error(x.grad, weight.sum(0).expand(3, 13)) < 1e-12
    values = weight.detach().clone()
    assert type(values) is Tensor
    assert torch.equal(torch.from_numpy(weight.numpy().copy()), values)
    assert weight.tolist() == values.tolist()
    assert repr(weight) == repr(values)
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert type(copied) is Tensor
        assert torch.equal(copied, values)


def test_shape_and_dtype_of_the_weight_are_known_without_building_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, layer = make(dtype=torch.float16)

    def build(self: FastSVDLinear) -> Tensor:
        raise AssertionError("the weight was built")

    monkeypatch.setattr(FastSVDLinear, "_materialise", build)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    assert (weight.dtype, weight.shape, weight.device.type) == (torch.float16, (17, 13), "cpu")
    assert (weight.ndim, weight.numel(), weight.is_cuda, weight.is_floating_point()) == (2, 221, False, True)
    assert hasattr(layer, "weight")


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(2),
        lambda w: operator.imul(w, 2),
        lambda w: operator.imul(w.data, 2),
        lambda w: w.data.normal_(),
        lambda w: setattr(w, "data", torch.zeros(17, 13)),
        lambda w: w.detach().copy_(torch.zeros(17, 13)),
        nn.init.zeros_,
        lambda w: torch.add(w, 1, out=w),
        lambda w: torch._foreach_add_([w], 1.0),
        lambda w: operator.setitem(w, 0, 0.0),
        lambda w: operator.setitem(w, (slice(None), [0, 1]), 0.0),
        lambda w: w[0].zero_(),
        lambda w: w.data[1:, 2].zero_(),
        lambda w: w.t().zero_(),
        lambda w: w.view(-1).fill_(1),
        lambda w: w.unbind()[0].zero_(),
        lambda w: w.chunk(2)[1].zero_(),
        lambda w: w.diagonal().zero_(),
        lambda w: operator.iadd(w.t()[2:].unflatten(1, (1, -1)), 1),
    ],
)
def test_writing_into_the_weight_or_a_view_of_it_raises(write: Callable[[Tensor], object]) -> None:
    _, layer = make()
    with pytest.raises(RuntimeError, match=r"FastSVDLinear\.weight must not be written to|is a view|out=\.\.\."):
        write(layer.weight)  # autograd itself refuses some
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"FastSVDLinear\.weight must not be written to, got a"):
        write(layer.weight)


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda layer: setattr(layer, "weight", torch.zeros(17, 13)), AttributeError),
        (lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(17, 13))), KeyError),
        (lambda layer: delattr(layer, "weight"), AttributeError),
        (lambda layer: operator.setitem(layer.weight.numpy(), 0, 0.0), ValueError),
    ],
)
def test_replacing_the_weight_raises(write: Callable[[FastSVDLinear], object], error: type[Exception]) -> None:
    _, layer = make()
    with pytest.raises(error):
        write(layer)


@pytest.mark.parametrize(
    "view",
    [
        Tensor.t,
        lambda w: w[3],
        lambda w: w[2:9, ::2],
        lambda w: w.t().unsqueeze(0),
        lambda w: w.split(5)[1],
        lambda w: w.mT[1],
    ],
)
def test_views_of_the_weight_have_its_values(view: Callable[[Tensor], Tensor]) -> None:
    _, layer = make()
    expected = view(layer.weight.clone())
    found = view(layer.weight)
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert torch.equal(found, expected)
    assert torch.equal(found * 2, expected * 2)
    assert type(found.clone()) is Tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rank", "keep_remainder"), [(None, True), (5, True), (5, False)])
def test_merge(dtype: torch.dtype, rank: int | None, keep_remainder: bool) -> None:
    _, layer = make(rank=rank, keep_remainder=keep_remainder, dtype=dtype)
    with torch.no_grad():
        layer.delta_s_static.normal_()
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 3, 13, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        merged = layer.eval().merge()
    assert type(merged) is nn.Linear
    assert not merged.training
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert merged.weight.dtype == dtype
    assert relative_error(merged(x), layer(x)) < LIMIT[dtype]
    merged.weight.zero_()
    merged.bias.zero_()
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


def test_a_merged_layer_can_be_factored_again() -> None:
    _, layer = make()
    with torch.no_grad():
        layer.delta_s_static.normal_()
    again = FastSVDLinear.from_linear(layer.merge())
    x = torch.randn(4, 13, dtype=torch.float64)
    assert relative_error(again(x), layer(x)) < 1e-12
    assert not again.delta_s_static.any()


# Bad input

X = torch.ones(4, 3, 13)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: FastSVDLinear(13, 17, rank=14), ValueError, r"rank must lie in 1..13 .* got 14"),
        (lambda _: FastSVDLinear(13, 17, rank=0), ValueError, r"rank must lie in 1..13 .* got 0"),
        (lambda _: FastSVDLinear(0, 17), ValueError, "non-empty matrix"),
        (lambda _: FastSVDLinear(3, 7, dtype=torch.int8), TypeError, "dtype must be .*, got torch.int8"),
        (lambda _: FastSVDLinear.from_linear(nn.Conv1d(3, 3, 1)), TypeError, "linear must be an nn.Linear, got Conv1d"),
        (lambda layer: layer(X, [0.0] * 13), TypeError, "delta_s must be a Tensor, got list"),
        (
            lambda layer: layer(X, torch.ones(4, 12)),
            ValueError,
            r"delta_s must be \[13\], \[B, 13\].* got shape \(4, 12\)",
        ),
        (lambda layer: layer(X, torch.ones(4, 3, 13)), ValueError, r"delta_s must be .* got shape \(4, 3, 13\)"),
        (lambda layer: layer(X, torch.tensor(1.0)), ValueError, r"delta_s must be .* got shape \(\)"),
        (
            lambda layer: layer(X, torch.ones(3, 13)),
            ValueError,
            r"one row for each sample of x \(4, 3, 13\), got shape \(3, 13\)",
        ),
        (lambda layer: layer(X[0, 0], torch.ones(1, 13)), ValueError, r"one row for each sample of x \(13,\)"),
        (
            lambda layer: layer(X, index=torch.zeros(4, dtype=torch.int64)),
            ValueError,
            "index must be None where delta_s is None, got Tensor",
        ),
        (lambda layer: layer(X, torch.ones(2, 13), index=torch.full((4,), 2)), ValueError, "index"),
        (lambda layer: layer(X, torch.ones(2, 13), index=torch.ones(4)), TypeError, "index"),
        (lambda layer: layer(torch.ones(4, 3, 12)), ValueError, "x must have 13 features"),
        (lambda layer: layer(X.double()), TypeError, "torch.float64"),
        (lambda layer: layer.requires_grad_(True)(X), ValueError, "frozen"),
    ],
)
def test_bad_input(call: Callable[[FastSVDLinear], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(FastSVDLinear(13, 17))


def test_a_weight_with_nan_is_rejected() -> None:
    linear = nn.Linear(3, 3)
    nn.init.constant_(linear.weight, torch.nan)
    with pytest.raises(ValueError, match="weight must be finite"):
        FastSVDLinear.from_linear(linear)
