"""Outputs of all modules of nn are no views, so in-place operations on them keep gradients and hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

import hystar_fast.nn
from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.conv1d import FastSVDConv1D
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.hyperbolic import BallPoint, HyperbolicLinear
from hystar_fast.nn.hypernetwork import Hypernetwork
from hystar_fast.nn.losses import InfoNCELoss, MetricLearningLoss, StyleNCELoss
from hystar_fast.nn.views import apply_linear, own_tensor
from tests.support.modules import assert_owns_its_memory, modules_with_forward
from tests.support.tolerance import relative_error

Call = tuple[nn.Module, tuple[Tensor | None, ...], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def linear_calls() -> Iterator[Call]:
    """Yield every rank of x with every form of the offset; 900 tokens of few styles materialise their weights."""
    for options in ({}, {"bias": False}, {"rank": 5}, {"rank": 5, "keep_remainder": False}, {"precision": "fp8"}):
        layer = FastSVDLinear(13, 17, **options)  # type: ignore[arg-type]
        for shape in ((13,), (4, 13), (4, 3, 13), (4, 2, 3, 13), (0, 13), (2, 900, 13)):
            x = torch.randn(shape)
            yield layer, (x,), {}
            yield layer, (x, torch.randn(layer.rank)), {}
            if len(shape) > 1:
                yield layer, (x, torch.randn(shape[0], layer.rank)), {}
                yield layer, (x, torch.randn(2, layer.rank)), {"index": torch.arange(shape[0]) % 2}


def conv1d_calls() -> Iterator[Call]:
    layer = FastSVDConv1D.from_conv1d(Conv1D(17, 13), None)
    for shape in ((13,), (4, 13), (4, 3, 13)):
        yield layer, (torch.randn(shape),), {}
        yield layer, (torch.randn(shape), torch.randn(layer.rank)), {}


def attention_calls() -> Iterator[Call]:
    """Yield every form of the offset and of the output projection, with few tokens, with many, and with one."""
    for bias, heads in ((True, 2), (False, 2), (True, 1)):
        attention = SVDAttention.from_mha(nn.MultiheadAttention(8, heads, bias=bias))
        injected = SVDAttention(attention.in_proj, FastSVDLinear.from_linear(attention.out_proj), heads)  # type: ignore[arg-type]
        merged = SVDAttention(attention.in_proj, attention.out_proj, heads)
        merged.in_proj = attention.in_proj.merge()  # type: ignore[assignment]
        hooked = SVDAttention.from_mha(nn.MultiheadAttention(8, heads, bias=bias))
        hooked.out_proj.register_forward_hook(lambda module, args, y: y.view(y.shape))
        for shape in ((3, 5, 8), (3, 129, 8), (3, 1, 8), (1, 1, 8), (0, 5, 8)):
            x, tokens = torch.randn(shape), shape[1]
            yield merged, (x,), {}
            yield attention, (x,), {"attn_mask": torch.zeros(tokens, tokens, dtype=torch.bool)}
            for module in (attention, injected, hooked):
                yield module, (x,), {}
                yield module, (x, torch.randn(8)), {}
                yield module, (x, torch.randn(shape[0], 8)), {}
                yield module, (x, torch.randn(2, 8)), {"index": torch.arange(shape[0]) % 2}


def hypernetwork_calls() -> Iterator[Call]:
    for depth in (1, 2, 3):
        for shape in ((5,), (4, 5), (2, 4, 5), (2, 3, 4, 5), (0, 5)):
            yield Hypernetwork(5, 8, depth=depth), (torch.randn(shape),), {}


def hyperbolic_calls() -> Iterator[Call]:
    for bias in (True, False):
        for shape in ((5,), (4, 5), (2, 4, 5), (0, 5)):
            yield HyperbolicLinear(5, 8, bias=bias), (torch.randn(shape),), {}


def loss_calls(*losses: nn.Module) -> Iterator[Call]:
    for loss in losses:
        for count in (1, 4):
            pair = torch.randn(count, 6), torch.randn(count, 6)
            yield loss, pair, {}
            yield loss, (*pair, torch.ones(count, count, dtype=torch.bool).triu(1)), {}


CALLS: dict[type[nn.Module], Callable[[], Iterator[Call]]] = {
    FastSVDLinear: linear_calls,
    FastSVDConv1D: conv1d_calls,
    SVDAttention: attention_calls,
    Hypernetwork: hypernetwork_calls,
    HyperbolicLinear: hyperbolic_calls,
    StyleNCELoss: lambda: loss_calls(StyleNCELoss(), StyleNCELoss(reduction="none"), StyleNCELoss(plan_grad="unroll")),
    InfoNCELoss: lambda: loss_calls(InfoNCELoss(), InfoNCELoss(hardness=1.0)),
    MetricLearningLoss: lambda: loss_calls(
        MetricLearningLoss("triplet", margin=0.2),
        MetricLearningLoss("triplet", margin=0.2, hard=True),
        MetricLearningLoss("circle", margin=0.4),
    ),
}


def test_every_module_is_called_here() -> None:
    assert set(CALLS) == modules_with_forward(hystar_fast.nn)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
def test_no_output_is_a_view(kind: type[nn.Module], gradients: bool, training: bool) -> None:
    for module, args, kwargs in CALLS[kind]():
        module.train(training)
        floating = [arg for arg in args if arg is not None and arg.is_floating_point()]
        for arg in floating:
            arg.requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            y = module(*args, **kwargs)
        for part in y if isinstance(y, BallPoint) else (y,):
            assert_owns_its_memory(part, module, *args, *kwargs.values())
            assert part.requires_grad == gradients


def view_of_a_saved_result(y: Tensor) -> Tensor:
    return y.sigmoid().view(y.shape)


class Saturated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return view_of_a_saved_result(super().forward(x))


def plain(out_proj: nn.Linear) -> nn.Linear:
    return out_proj


def of_another_kind(out_proj: nn.Linear) -> nn.Linear:
    return Saturated(8, 8, dtype=torch.float64)


def with_a_hook(out_proj: nn.Linear) -> nn.Linear:
    out_proj.register_forward_hook(lambda module, args, y: view_of_a_saved_result(y))
    return out_proj


def with_its_own_forward(out_proj: nn.Linear) -> nn.Linear:
    forward = out_proj.forward
    out_proj.forward = lambda x: view_of_a_saved_result(forward(x))  # type: ignore[method-assign]
    return out_proj


@pytest.mark.parametrize("change", [plain, of_another_kind, with_a_hook, with_its_own_forward])
def test_in_place_operations_on_attention_keep_its_gradients(change: Callable[[nn.Linear], nn.Linear]) -> None:
    """A sigmoid saves its result for the backward: an in-place operation must not reach it."""
    attention = SVDAttention.from_mha(nn.MultiheadAttention(8, 2, dtype=torch.float64))
    attention.out_proj = change(attention.out_proj)
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *attention.out_proj.parameters()]
    expected = torch.autograd.grad((2 * attention(x) + x).square().sum(), inputs)
    y = attention(x).mul_(2)
    y += x
    for gradient, wanted in zip(torch.autograd.grad(y.square().sum(), inputs), expected, strict=True):
        assert relative_error(gradient, wanted) < 1e-12


def test_a_hook_on_the_output_survives_in_place_operations() -> None:
    """FSDP2 gathers the parameters for the backward in such a hook."""
    attention = SVDAttention.from_mha(nn.MultiheadAttention(8, 2))
    y, ran = attention(torch.randn(3, 5, 8, requires_grad=True)), []
    y.register_hook(ran.append)
    y += 1
    y.sum().backward()
    assert len(ran) == 1


@pytest.mark.parametrize("kind", [nn.Linear, FastSVDLinear])
def test_compiled_attention_returns_no_view(kind: type[nn.Linear | FastSVDLinear]) -> None:
    attention = SVDAttention.from_mha(nn.MultiheadAttention(8, 2))
    attention.out_proj = kind(8, 8)  # type: ignore[assignment]
    x = torch.randn(3, 5, 8, requires_grad=True)
    y = torch.compile(attention, fullgraph=True, backend="aot_eager")(x, torch.randn(3, 8))
    assert_owns_its_memory(y, attention, x)


class Products(TorchDispatchMode):
    """Mode that stores the result of every addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.addmm.default:
            self.results.append(result)
        return result


def test_the_product_of_a_linear_layer_is_not_copied() -> None:
    layer, x = nn.Linear(8, 6), torch.randn(3, 5, 8)
    with Products() as products:
        y = apply_linear(layer, x)
    (product,) = products.results
    assert y.data_ptr() == product.data_ptr()
    assert torch.equal(y, layer(x))


def test_a_view_is_copied_and_any_other_tensor_is_not() -> None:
    x = torch.randn(3, 5, 8)
    assert own_tensor(x) is x
    copied = own_tensor(x[:, 0])
    assert torch.equal(copied, x[:, 0])
    assert_owns_its_memory(copied, x)
