"""The ops under torch.func, forward-mode differentiation, vmap and torch.export: right derivatives, or an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from hystar_fast import FastSVDLinear, sinkhorn, style_nce, svd_linear

X = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OFFSETS = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
COST = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
TARGET = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
QUERY = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def layer() -> FastSVDLinear:
    torch.manual_seed(0)
    return FastSVDLinear(5, 7, dtype=torch.float64)


@pytest.fixture(params=["sinkhorn", "implicit sinkhorn", "style_nce", "plan gradient", "layer", "bank"])
def case(request: pytest.FixtureRequest, layer: FastSVDLinear) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    index = torch.tensor([2, 0, 2])
    return {
        "sinkhorn": (lambda cost: sinkhorn(cost, 0.1), COST),
        "implicit sinkhorn": (lambda cost: sinkhorn(cost, 0.3, 300, grad="implicit"), COST),
        "style_nce": (lambda query: style_nce(query, TARGET, gamma="auto"), QUERY),
        "plan gradient": (lambda query: style_nce(query, TARGET, plan_grad="unroll", reduction="none"), QUERY),
        "layer": (lambda offset: layer(X, offset), OFFSETS),
        "bank": (lambda offset: layer(X, offset, index=index), OFFSETS),
    }[request.param]


def test_jacobians_of_torch_func_equal_autograds(case: tuple[Callable[[Tensor], Tensor], Tensor]) -> None:
    function, point = case
    expected = torch.autograd.functional.jacobian(function, point)
    assert float(expected.abs().max()) > 1e-3
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(function)(point), expected, rtol=1e-7, atol=1e-9)


def test_a_forward_mode_tangent_equals_the_jacobian_times_it(case: tuple[Callable[[Tensor], Tensor], Tensor]) -> None:
    function, point = case
    tangent = torch.arange(1.0, point.numel() + 1, dtype=point.dtype).reshape(point.shape)
    jacobian = torch.autograd.functional.jacobian(function, point)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(point, tangent))).tangent
    assert found is not None
    expected = (jacobian.flatten(-point.dim()) * tangent.flatten()).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_a_detached_plan_has_no_derivative_of_any_kind() -> None:
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert not transform(lambda cost: sinkhorn(cost, 0.1, grad="none"))(COST).any()


def test_vmap_of_the_layer_equals_a_batch_and_carries_gradients(layer: FastSVDLinear) -> None:
    mapped = torch.func.vmap(lambda x, offset: layer(x, offset))(X, OFFSETS)
    torch.testing.assert_close(mapped, layer(X, OFFSETS))
    (found,) = torch.autograd.grad(mapped.square().sum(), layer.delta_s_static)
    (expected,) = torch.autograd.grad(layer(X, OFFSETS).square().sum(), layer.delta_s_static)
    torch.testing.assert_close(found, expected)


def test_gradients_of_each_sample(layer: FastSVDLinear) -> None:
    def loss(offset: Tensor, x: Tensor) -> Tensor:
        return layer(x[None], offset[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(OFFSETS, X)
    expected = torch.autograd.functional.jacobian(lambda offset: layer(X, offset).square().sum(), OFFSETS)
    torch.testing.assert_close(found, expected)


def test_vmap_of_whole_problems_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"cost must not be batched by torch.func.vmap: .*\[..., N, M\]"):
        torch.func.vmap(lambda cost: sinkhorn(cost, 0.1))(torch.rand(2, 3, 3))
    with pytest.raises(NotImplementedError, match="mask must not be batched"):
        torch.func.vmap(lambda mask: sinkhorn(COST, 0.1, mask=mask))(torch.zeros(2, 4, 4, dtype=torch.bool))
    with pytest.raises(NotImplementedError, match="query must not be batched"):
        torch.func.vmap(lambda query: style_nce(query, TARGET))(QUERY.expand(2, 6, 8))


def test_an_index_outside_the_bank_is_rejected_under_transforms(layer: FastSVDLinear) -> None:
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\)"):
        torch.func.jacrev(lambda offset: layer(X, offset, index=torch.tensor([0, -1, 1])))(OFFSETS)


def test_fp8_is_refused_under_transforms() -> None:
    u, vh, x = torch.eye(4), torch.eye(4), torch.ones(2, 4)
    with pytest.raises(NotImplementedError, match="precision must be None"):
        torch.func.jacrev(lambda scale: svd_linear(x, u, scale, vh, precision="fp8"))(torch.ones(4))


class Module(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@pytest.mark.parametrize("grad", [True, False], ids=["grad mode", "no_grad"])
@pytest.mark.parametrize("name", ["layer", "sinkhorn", "style_nce"])
def test_an_exported_program_takes_any_batch_and_backpropagates(name: str, grad: bool, layer: FastSVDLinear) -> None:
    module, inputs = {
        "layer": (Module(lambda x, offset: layer(x, offset).relu(), layer), (X, OFFSETS)),
        "sinkhorn": (Module(lambda cost: sinkhorn(cost, 0.1, 7)), (COST.expand(3, 4, 4).clone(),)),
        "style_nce": (Module(lambda query, target: style_nce(query, target, gamma="auto")), (QUERY, TARGET)),
    }[name]
    batch = Dim("batch", min=2)
    with torch.set_grad_enabled(grad):
        program = export(module, inputs, dynamic_shapes={"tensors": tuple({0: batch} for _ in inputs)}).module()
    larger = [torch.cat([tensor, tensor.flip(0) + 0.1]).requires_grad_() for tensor in inputs]
    found, expected = program(*larger), module(*larger)
    torch.testing.assert_close(found, expected)
    weights = torch.arange(1.0, found.numel() + 1, dtype=found.dtype).reshape(found.shape)
    gradients = (torch.autograd.grad((y * weights).sum(), larger) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_second_derivatives_are_refused_or_right(case: tuple[Callable[[Tensor], Tensor], Tensor]) -> None:
    """The gradient of a linear loss, a penalty on it, and torch's own Hessian would be silently without their part."""
    function, point = case
    leaf = point.clone().requires_grad_()
    for loss in (function(leaf).sum(), function(leaf).square().sum()):
        with pytest.raises(RuntimeError, match=r"create_graph must be False, because .* has first derivatives only"):
            torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="create_graph must be False"):
        torch.autograd.functional.hessian(lambda z: function(z).sum(), point)
    assert torch.func.hessian(lambda z: function(z).square().sum())(point).abs().sum() > 1e-6


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "svd_linear": lambda x: svd_linear(x, torch.eye(4), torch.arange(1.0, 5), torch.eye(4)),
    "sinkhorn": lambda x: sinkhorn(x, 0.5, 20, grad="none"),
    "style_nce": lambda x: style_nce(x, x.flip(1), reduction="none"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_traced_programs_compute(name: str) -> None:
    """torch.jit.trace and make_fx keep the op, and not what it computed for the example."""
    function, first, second = LOSSES[name], torch.rand(6, 4), torch.rand(6, 4)
    expected = function(second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit.trace is deprecated
        torch.testing.assert_close(torch.jit.trace(function, first, check_trace=False)(second), expected)
    torch.testing.assert_close(make_fx(function, pre_dispatch=True)(first)(second), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_lazy_sign_is_resolved(name: str) -> None:
    """The imaginary part of a conjugate is memory of the other sign, which only the dispatcher knows."""
    values = torch.complex(torch.rand(6, 4), torch.rand(6, 4))
    lazy = values.conj().imag
    assert lazy.is_neg()
    torch.testing.assert_close(LOSSES[name](lazy), LOSSES[name](lazy.clone().resolve_neg()))


@pytest.mark.parametrize("name", LOSSES)
def test_modes_see_the_op(name: str) -> None:
    seen: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        LOSSES[name](torch.rand(6, 4))
    assert any(name in one for one in seen), seen


def test_batched_gradients() -> None:
    """is_grads_batched runs the backward of svd_linear and style_nce under vmap."""
    x = torch.rand(6, 4, requires_grad=True)
    for name in ("svd_linear", "style_nce"):
        y = LOSSES[name](x)
        upstream = torch.rand(3, *y.shape)
        (batched,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
        single = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in upstream]
        torch.testing.assert_close(batched, torch.stack(single))
