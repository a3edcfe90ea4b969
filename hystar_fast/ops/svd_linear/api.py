"""The public function svd_linear, the schema of its ops, their fake kernels and autograd, and the choice of a path."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.status import OpStatus
from hystar_fast.ops.svd_linear import cpu, cuda, replay
from hystar_fast.ops.svd_linear.checks import check_index_range, check_inputs, check_same_dtype
from hystar_fast.ops.svd_linear.cost import materialising_is_cheaper, may_materialise
from hystar_fast.ops.svd_linear.fp8 import Fp8Factors, quantise_factors
from hystar_fast.ops.transforms import eager_op, first_order, is_transformed
from hystar_fast.ref.svd_linear import svd_linear as reference

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
LIB.define(
    "svd_linear_forward(Tensor x, Tensor u, Tensor scale, Tensor vh, Tensor? bias, Tensor? index, bool materialise, "
    "bool save) -> (Tensor, Tensor)"
)
LIB.define(
    "svd_linear_backward(Tensor dy, Tensor? x, Tensor u, Tensor scale, Tensor vh, Tensor? index, Tensor saved, "
    "bool materialise, bool needs_dx, bool needs_dscale, bool needs_dbias) -> (Tensor, Tensor, Tensor)"
)
for _device, _module in (("CPU", cpu), ("CUDA", cuda)):
    LIB.impl("svd_linear_forward", _module.forward, _device)
    LIB.impl("svd_linear_backward", _module.backward, _device)


@torch.library.register_fake("hystar_fast::svd_linear_forward", lib=LIB)
def _forward_fake(
    x: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    materialise: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(*x.shape[:-1], u.shape[0])
    dtype = torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype
    if not save:
        return y, x.new_empty(0, dtype=dtype)
    if materialise:
        return y, x.new_empty(scale.shape[0] if scale.dim() == 2 else 1, u.shape[0], vh.shape[1], dtype=dtype)
    return y, x.new_empty(prod(x.shape[:-1]), vh.shape[0], dtype=dtype)


@torch.library.register_fake("hystar_fast::svd_linear_backward", lib=LIB)
def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    saved: Tensor,
    materialise: bool,
    needs_dx: bool,
    needs_dscale: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy.new_empty(*dy.shape[:-1], vh.shape[1]) if needs_dx else dy.new_empty(0)
    dscale = scale.new_empty(scale.shape if needs_dscale else 0)
    return dx, dscale, dy.new_empty(u.shape[0] if needs_dbias else 0)


_DIFFERENTIABLE = (0, 2, 4)  # x, scale and bias among the inputs of the op and of the autograd.Function


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, u, scale, vh, _, index, ctx.materialise, save = inputs
    ctx.save_for_backward(x, u, scale, vh, index, output[1] if save else None)


@first_order("svd_linear")
def _backward_of_op(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the op itself, as exported programs call it; what was not saved is computed again."""
    x, u, scale, vh, index, saved = ctx.saved_tensors
    _, needs_u, needs_dscale, needs_vh, *_ = ctx.needs_input_grad
    if needs_u or needs_vh:
        raise RuntimeError("u and vh must be frozen, as they get no gradient")
    if saved is None and (needs_dscale or ctx.materialise):
        saved = torch.ops.hystar_fast.svd_linear_forward(x, u, scale, vh, None, index, ctx.materialise, True)[1]
    saved = dy.new_empty(0) if saved is None else saved
    return _gradients(ctx, dy, x, u, scale, vh, index, saved)


def _gradients(ctx: Any, dy: Tensor, *saved: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, scale and bias at the places of these inputs, and None at every other."""
    needs = [ctx.needs_input_grad[i] for i in _DIFFERENTIABLE]
    found = _backward(dy, *saved, ctx.materialise, *needs)
    gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for place, gradient, needed in zip(_DIFFERENTIABLE, found, needs, strict=True):
        gradients[place] = gradient if needed else None
    return tuple(gradients)


torch.library.register_autograd(
    "hystar_fast::svd_linear_forward", _backward_of_op, setup_context=_setup_context, lib=LIB
)

_forward = eager_op(torch.ops.hystar_fast.svd_linear_forward.default, cpu.forward, cuda.forward)
_backward = eager_op(torch.ops.hystar_fast.svd_linear_backward.default, cpu.backward, cuda.backward)


class _SVDLinear(torch.autograd.Function):
    """The layer with its gradients. It saves h if scale needs a gradient, and otherwise no activation.

    h is never larger than x, but for float16 on a CPU, where it is float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        u: Tensor,
        scale: Tensor,
        vh: Tensor,
        bias: Tensor | None,
        index: Tensor | None,
        materialise: bool,
        needs_dx: bool,
        needs_dscale: bool,
        *factors: Tensor,
    ) -> Tensor:
        save = needs_dx if materialise else needs_dscale
        if factors:
            y, saved = torch.ops.hystar_fast.svd_linear_fp8_forward(x, scale, *factors, bias, index, save)
        else:
            y, saved = _forward(x, u, scale, vh, bias, index, materialise, save)
        ctx.save_for_backward(x if materialise and needs_dscale else None, u, scale, vh, index, saved)
        ctx.materialise = materialise
        return y

    @staticmethod
    @first_order("svd_linear")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, dy, *ctx.saved_tensors)


class _Repeated(torch.autograd.Function):
    """A forward that has been repeated already, with its gradients: fewer arguments, as each takes time."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        results: tuple[Tensor, ...],
        constants: tuple[Tensor, Tensor, Tensor | None],
    ) -> Tensor:
        u, vh, index = constants
        ctx.save_for_backward(u, scale, vh, index, *results[1:])
        return results[0]

    @staticmethod
    @first_order("svd_linear")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, scale, vh, index, *saved = ctx.saved_tensors
        h, needs = saved[0] if saved else None, ctx.needs_input_grad[:3]
        repeated = replay.backward(dy, u, scale, vh, index, h, *needs)
        if repeated is not None:
            return *repeated, None, None
        found = _backward(dy, None, u, scale, vh, index, dy.new_empty(0) if h is None else h, False, *needs)
        return *(gradient if needed else None for gradient, needed in zip(found, needs, strict=True)), None, None


def svd_linear(
    x: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    bias: Tensor | None = None,
    *,
    index: Tensor | None = None,
    precision: Literal["fp8"] | None = None,
    factors: Fp8Factors | None = None,
) -> Tensor:
    """Apply a linear layer that is given by its SVD, with singular values for each sample.

    ``y[b, t] = u @ (scale[b] * (vh @ x[b, t])) + bias``: Hystar's modulated layer with scale = s + delta_s. The weight
    of a sample is not built, unless the batch has so few different scales that building their weights is cheaper.

    Args:
        x: Input ``[B, T, in]`` or ``[B, in]``; any leading shape when ``scale`` is one-dimensional.
            float16, bfloat16, float32 or float64. On a GPU, float16 also holds ``vh @ x``, whose entries can reach the
            norm of x, and 1/64 of ``scale * (vh @ x)``, whose entries can reach the norm of y: use bfloat16 where the
            first can exceed 65,504, or the second 4,190,000.
        u: Left singular vectors ``[out, r]``, dtype of x, frozen.
        scale: Singular values, with their offsets: ``[r]`` shared, ``[B, r]`` one row for each sample, or ``[K, r]`` a
            bank with ``index``. Any floating dtype. It is applied in float32 or wider, so keep it in float32 if x is
            half precision.
        vh: Right singular vectors ``[r, in]``, dtype of x, frozen.
        bias: ``[out]``, dtype of x, or None.
        index: Row of the bank for each sample, int32 or int64 ``[B]``.
        precision: ``None``, or ``"fp8"`` to run both products of the forward in e4m3. The relative error is then about
            5e-2; in bfloat16 it is 4e-3 (docs/algorithms/svd_linear.md). x must be float16, bfloat16 or float32. It
            needs a GPU of compute capability 8.9 or more. On the CPU it is emulated, which shows its error but not its
            speed.
        factors: For ``"fp8"``: the result of an earlier ``quantise_factors(u, vh)``. ``None`` quantises u and vh again.

    Returns:
        ``y`` with the leading shape of x and ``out`` features, in the dtype of x. Autocast casts x, u, vh and bias as
        it casts the tensors of nn.Linear. It does not cast scale.

    Gradients:
        x, scale (in its own dtype, summed in float32 or wider) and bias; first order only. ``u`` and ``vh`` are frozen:
        if one of them requires grad while gradients are recorded, this is an error. With ``precision="fp8"`` the
        backward runs in the dtype of x, with the h that the forward computed.

    Cost:
        2 N r (in + out) FLOPs forward for N tokens, and the same backward. N r values are kept for the backward if
        scale needs a gradient. hystar_fast/ops/svd_linear/cost.py has the model that chooses the path.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, the GPU has no fp8, or (on the CPU) an index is out of range. On
            CUDA, where checking it would cost a synchronisation, a sample whose index is out of range gets NaN.

    Source:
        Hystar, Eq. 1 and 2.

    Example:
        >>> import torch
        >>> from hystar_fast import svd_linear
        >>> weight = torch.randn(6, 4, dtype=torch.float64)
        >>> u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        >>> x = torch.randn(2, 3, 4, dtype=torch.float64)
        >>> torch.allclose(svd_linear(x, u, s, vh), x @ weight.T)
        True
    """
    grads = torch.is_grad_enabled()
    if precision is None and factors is None and not torch.compiler.is_compiling():
        repeated = replay.checked_forward(x, u, scale, vh, bias, index, grads)
        if repeated is not None:
            if grads and (x.requires_grad or scale.requires_grad or (bias is not None and bias.requires_grad)):
                return _Repeated.apply(x, scale, bias, repeated, (u, vh, index))
            return repeated[0]
    check_inputs(x, u, scale, vh, bias, index)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        x, u, vh = _autocast(x), _autocast(u), _autocast(vh)
        bias = None if bias is None else _autocast(bias)
    check_same_dtype(x, u, vh, bias)
    if precision is not None or factors is not None:
        factors = _fp8_factors(x, u, vh, precision, factors)
    if is_transformed(x, scale, bias):
        if factors is not None:
            raise NotImplementedError("precision must be None under transforms of torch.func, got 'fp8'")
        check_index_range(index, scale)
        with without_autocast(x.device.type):
            return reference(x, u, scale, vh, bias, index=index)
    needs_dx, needs_dscale = grads and x.requires_grad, grads and scale.requires_grad
    if torch.compiler.is_exporting() and factors is None:  # one path for every batch size, differentiated by the op
        exported: Tensor = _forward(x, u, scale, vh, bias, index, False, needs_dscale)[0]
        return exported
    materialise = (
        factors is None
        and may_materialise(x, index, needs_dscale)
        and materialising_is_cheaper(
            x.numel() // max(1, x.shape[-1]),
            scale.shape[0] if scale.dim() == 2 else 1,
            vh.shape[0],
            vh.shape[1],
            u.shape[0],
            needs_dx=needs_dx,
            needs_dscale=needs_dscale,
        )
    )
    if needs_dx or needs_dscale or (grads and bias is not None and bias.requires_grad):
        quantised = () if factors is None else factors
        return _SVDLinear.apply(x, u, scale, vh, bias, index, materialise, needs_dx, needs_dscale, *quantised)
    if factors is not None:
        return torch.ops.hystar_fast.svd_linear_fp8_forward(x, scale, *factors, bias, index, False)[0]
    y: Tensor = _forward(x, u, scale, vh, bias, index, materialise, False)[0]
    return y


def status() -> list[OpStatus]:
    """Return the implementation of svd_linear on each device."""
    plain = "torch: two GEMMs around one multiply"
    problem = cuda.triton_problem() or ("" if torch.cuda.is_available() else "torch sees no CUDA GPU")
    return [
        OpStatus("svd_linear", "cpu", plain),
        OpStatus("svd_linear", "cuda", plain if problem else "triton", problem),
    ]


def _autocast(tensor: Tensor) -> Tensor:
    """Cast a tensor as autocast casts those of nn.Linear: every floating dtype except float64."""
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _fp8_factors(x: Tensor, u: Tensor, vh: Tensor, precision: str | None, factors: Fp8Factors | None) -> Fp8Factors:
    """Check the arguments of fp8, and return the quantised factors; they are made here if none are given."""
    if precision is None:
        raise ValueError("precision must be 'fp8' if factors are given, got None")
    if precision != "fp8":
        raise ValueError(f"precision must be None or 'fp8', got {precision!r}")
    if x.dtype == torch.float64:
        raise TypeError("x must be float16, bfloat16 or float32 for precision='fp8', got torch.float64")
    if factors is None:
        return quantise_factors(u, vh)
    if not isinstance(factors, Fp8Factors):
        raise TypeError(f"factors must be the Fp8Factors of quantise_factors(u, vh), got {type(factors).__name__}")
    for name, tensor, like in (("u", factors.u, u), ("vh", factors.vh, vh)):
        if tensor.shape != like.shape or tensor.device != like.device:
            raise ValueError(
                f"factors must have {name} of shape {list(like.shape)} on {like.device}, "
                f"got {list(tensor.shape)} on {tensor.device}"
            )
    return factors
