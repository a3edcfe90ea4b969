"""svd_linear: schema, fake kernels, autograd and the choice of path."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hystar_fast.ops import svd_linear_cpu, svd_linear_cuda
from hystar_fast.ops.status import OpStatus
from hystar_fast.ops.svd_linear_cost import materialising_is_cheaper
from hystar_fast.ops.svd_linear_fp8 import Fp8Factors, quantise_factors

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
LIB.define(
    "svd_linear_forward(Tensor x, Tensor u, Tensor scale, Tensor vh, Tensor? bias, Tensor? index, bool materialise, "
    "bool save) -> (Tensor, Tensor)"
)
LIB.define(
    "svd_linear_backward(Tensor dy, Tensor? x, Tensor u, Tensor scale, Tensor vh, Tensor? index, Tensor saved, "
    "bool materialise, bool needs_dx, bool needs_dscale, bool needs_dbias) -> (Tensor, Tensor, Tensor)"
)
LIB.impl("svd_linear_forward", svd_linear_cpu.forward, "CPU")
LIB.impl("svd_linear_backward", svd_linear_cpu.backward, "CPU")
LIB.impl("svd_linear_forward", svd_linear_cuda.forward, "CUDA")
LIB.impl("svd_linear_backward", svd_linear_cuda.backward, "CUDA")

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    if not save:
        return y, x.new_empty(0)
    if materialise:
        return y, x.new_empty(scale.shape[0] if scale.dim() == 2 else 1, u.shape[0], vh.shape[1])
    return y, x.new_empty(prod(x.shape[:-1]), vh.shape[0])


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


class _SVDLinear(torch.autograd.Function):
    """Saves h where scale needs a gradient (it is never larger than x), and nothing of the activations otherwise."""

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
            y, saved = torch.ops.hystar_fast.svd_linear_forward(x, u, scale, vh, bias, index, materialise, save)
        ctx.save_for_backward(x if materialise and needs_dscale else None, u, scale, vh, index, saved)
        ctx.materialise = materialise
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, u, scale, vh, index, saved = ctx.saved_tensors
        needs_dx, needs_dscale, needs_dbias = (ctx.needs_input_grad[i] for i in (0, 2, 4))
        dx, dscale, dbias = torch.ops.hystar_fast.svd_linear_backward(
            dy, x, u, scale, vh, index, saved, ctx.materialise, needs_dx, needs_dscale, needs_dbias
        )
        gradients = (
            dx if needs_dx else None,
            None,
            dscale if needs_dscale else None,
            None,
            dbias if needs_dbias else None,
        )
        return gradients + (None,) * (len(ctx.needs_input_grad) - len(gradients))


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
    """Apply a linear layer given by its SVD, with the singular values chosen per sample.

    ``y[b, t] = u @ (scale[b] * (vh @ x[b, t])) + bias``: Hystar's modulated layer with scale = s + delta_s.
    No weight of a sample is ever built, unless the batch holds so few distinct scales that building one is cheaper.

    Args:
        x: Input ``[B, T, in]`` or ``[B, in]``; any leading shape when ``scale`` is one-dimensional.
            float16, bfloat16, float32 or float64.
        u: Left singular vectors ``[out, r]``, dtype of x, frozen.
        scale: Singular values as used: ``[r]`` shared, ``[B, r]`` one a sample, or ``[K, r]`` a bank with ``index``.
            Any floating dtype; it is applied in float32 or wider, so keep it in float32 when x is half.
        vh: Right singular vectors ``[r, in]``, dtype of x, frozen.
        bias: ``[out]``, dtype of x, or None.
        index: Row of the bank for each sample, int32 or int64 ``[B]``.
        precision: ``None``, or ``"fp8"`` to run both products of the forward in e4m3, at a relative error of some 5e-2
            against 4e-3 in bfloat16 (docs/algorithms/svd_linear.md). x is then float16, bfloat16 or float32. Needs a
            GPU of compute capability 8.9 or more; on the CPU it is emulated, to see its error and not its speed.
        factors: For ``"fp8"``, ``quantise_factors(u, vh)`` of an earlier call; ``None`` quantises u and vh again.

    Returns:
        ``y`` of x's leading shape and ``out`` features, dtype of x. Under autocast x, u, vh and bias are cast as
        nn.Linear casts them, and scale is not.

    Gradients:
        x, scale (in its own dtype, summed in float32 or wider) and bias; first order only. ``u`` and ``vh`` are
        frozen: one that requires grad while gradients are recorded is an error, never a missing gradient. With
        ``precision="fp8"`` the backward runs in x's dtype, with the h that the forward computed.

    Cost:
        2 N r (in + out) FLOPs for N tokens forward, and as much again backward; N r values kept for the backward
        when scale needs a gradient. hystar_fast/ops/svd_linear_cost.py holds the model that picks the path.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices disagree, the GPU has no fp8, or (on CPU) an index is out of range. On CUDA,
            where looking would cost a synchronisation, a sample whose index is out of range gets NaN.

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
    _check(x, u, scale, vh, bias, index)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        x, u, vh = _autocast(x), _autocast(u), _autocast(vh)
        bias = None if bias is None else _autocast(bias)
    _check_dtypes(x, u, vh, bias)
    if precision is not None or factors is not None:
        factors = _checked_factors(x, u, vh, precision, factors)
    grads = torch.is_grad_enabled()
    needs_dx, needs_dscale = grads and x.requires_grad, grads and scale.requires_grad
    materialise = (
        factors is None
        and _may_materialise(x, index, needs_dscale)
        and materialising_is_cheaper(
            prod(x.shape[:-1]),
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
    return torch.ops.hystar_fast.svd_linear_forward(x, u, scale, vh, bias, index, materialise, False)[0]


def status() -> list[OpStatus]:
    """Say what svd_linear runs on each device."""
    reason = svd_linear_cuda.why_not()
    return [
        OpStatus("svd_linear", "cpu", "torch: two GEMMs around one multiply"),
        OpStatus("svd_linear", "cuda", "torch: two GEMMs around one multiply" if reason else "triton", reason or ""),
    ]


def _may_materialise(x: Tensor, index: Tensor | None, needs_dscale: bool) -> bool:
    """Sorting by style reads the index, so only on the host; and dW, a sum over all tokens, overflows float16."""
    return (index is None or x.device.type == "cpu") and not (needs_dscale and x.dtype == torch.float16)


def _autocast(tensor: Tensor) -> Tensor:
    """Cast what nn.Linear would cast: everything floating but float64."""
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _check_dtypes(x: Tensor, u: Tensor, vh: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("u", u), ("vh", vh), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name}: needs the dtype of x, {x.dtype}, got {tensor.dtype}")


def _checked_factors(x: Tensor, u: Tensor, vh: Tensor, precision: str | None, factors: Fp8Factors | None) -> Fp8Factors:
    """The quantised factors, made here if none are given."""
    if precision != "fp8":
        what = "factors: needs precision='fp8'" if precision is None else "precision: needs None or 'fp8'"
        raise ValueError(f"{what}, got {precision!r}")
    if x.dtype == torch.float64:
        raise TypeError("x: precision='fp8' needs float16, bfloat16 or float32, got torch.float64")
    if factors is None:
        return quantise_factors(u, vh)
    if not isinstance(factors, Fp8Factors):
        raise TypeError(f"factors: needs the Fp8Factors of quantise_factors(u, vh), got {type(factors).__name__}")
    for name, tensor, like in (("u", factors.u, u), ("vh", factors.vh, vh)):
        if tensor.shape != like.shape or tensor.device != like.device:
            raise ValueError(
                f"factors: need {name} of shape {list(like.shape)} on {like.device}, "
                f"got {list(tensor.shape)} on {tensor.device}"
            )
    return factors


def _check(x: Tensor, u: Tensor, scale: Tensor, vh: Tensor, bias: Tensor | None, index: Tensor | None) -> None:
    for name, tensor in (("x", x), ("u", u), ("scale", scale), ("vh", vh), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: needs a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name}: needs float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: needs the device of x, {x.device}, got {tensor.device}")
    if u.dim() != 2 or vh.dim() != 2 or u.shape[1] != vh.shape[0]:
        raise ValueError(f"u, vh: need [out, r] and [r, in], got {list(u.shape)} and {list(vh.shape)}")
    if x.dim() < 1 or x.shape[-1] != vh.shape[1]:
        raise ValueError(f"x: needs {vh.shape[1]} features (the columns of vh), got shape {list(x.shape)}")
    if bias is not None and bias.shape != u.shape[:1]:
        raise ValueError(f"bias: needs shape [{u.shape[0]}], got {list(bias.shape)}")
    if torch.is_grad_enabled() and (u.requires_grad or vh.requires_grad):
        name = "u" if u.requires_grad else "vh"
        raise ValueError(f"{name}: is frozen and gets no gradient, got a tensor that requires grad; pass it detached")
    _check_scale(x, scale, vh, index)


def _check_scale(x: Tensor, scale: Tensor, vh: Tensor, index: Tensor | None) -> None:
    rank = vh.shape[0]
    if scale.dim() not in (1, 2) or scale.shape[-1] != rank:
        raise ValueError(f"scale: needs [{rank}], [B, {rank}] or [K, {rank}] with index, got {list(scale.shape)}")
    if scale.dim() == 2 and x.dim() < 2:
        raise ValueError(f"x: needs [B, T, in] or [B, in] when scale has two dimensions, got {list(x.shape)}")
    if index is None:
        if scale.dim() == 2 and scale.shape[0] != x.shape[0]:
            raise ValueError(
                f"scale: needs one row a sample, [{x.shape[0]}, {rank}], got {list(scale.shape)}; pass index for a bank"
            )
        return
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index: needs an int32 or int64 Tensor, got {got}")
    if scale.dim() != 2:
        raise ValueError(f"scale: needs a bank [K, {rank}] when index is given, got {list(scale.shape)}")
    if scale.shape[0] == 0 and x.shape[0] > 0:
        raise ValueError(f"scale: needs at least one row for a batch of {x.shape[0]}, got {list(scale.shape)}")
    if index.shape != x.shape[:1]:
        raise ValueError(f"index: needs one row of scale a sample, shape [{x.shape[0]}], got {list(index.shape)}")
    if index.device != x.device:
        raise ValueError(f"index: needs the device of x, {x.device}, got {index.device}")
