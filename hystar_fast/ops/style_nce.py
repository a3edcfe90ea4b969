"""style_nce: schema, fake kernels, autograd and the choice of path."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hystar_fast.ops import style_nce_cpu, style_nce_cuda, style_nce_stream, style_nce_torch
from hystar_fast.ops.native import cuda_ready, extension, why_not
from hystar_fast.ops.status import OpStatus
from hystar_fast.ref.style_nce import WEIGHTS

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
LIB.define(
    "style_nce_forward(Tensor query, Tensor target, Tensor? mask, float temperature, float? gamma, float lam, "
    "float epsilon, int n_iter, str weights, bool mean, bool keep) "
    "-> (Tensor loss, Tensor slope, Tensor units, Tensor lengths)"
)
LIB.define(
    "style_nce_backward(Tensor dloss, Tensor slope, Tensor units, Tensor lengths, float temperature, "
    "bool needs_dquery, bool needs_dtarget) -> (Tensor, Tensor)"
)
for _device, _module in (("CPU", style_nce_cpu), ("CUDA", style_nce_cuda)):
    LIB.impl("style_nce_forward", _module.forward, _device)
    LIB.impl("style_nce_backward", _module.backward, _device)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PLAN_GRADS = ("none", "unroll", "implicit")
REDUCTIONS = ("mean", "none")


@torch.library.register_fake("hystar_fast::style_nce_forward", lib=LIB)
def _forward_fake(
    query: Tensor,
    target: Tensor,
    mask: Tensor | None,
    temperature: float,
    gamma: float | None,
    lam: float,
    epsilon: float,
    n_iter: int,
    weights: str,
    mean: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, d), dtype = query.shape, style_nce_torch.loss_dtype(query, target)
    kept = ((n, n), (2, n, d), (2, n)) if keep else ((0,), (0,), (0,))
    loss, slope, units, lengths = (query.new_empty(shape, dtype=dtype) for shape in (() if mean else (n,), *kept))
    return loss, slope, units, lengths


@torch.library.register_fake("hystar_fast::style_nce_backward", lib=LIB)
def _backward_fake(
    dloss: Tensor,
    slope: Tensor,
    units: Tensor,
    lengths: Tensor,
    temperature: float,
    needs_dquery: bool,
    needs_dtarget: bool,
) -> tuple[Tensor, Tensor]:
    dquery, dtarget = (units.new_empty(units.shape[1:] if needed else 0) for needed in (needs_dquery, needs_dtarget))
    return dquery, dtarget


_FORWARD = torch.ops.hystar_fast.style_nce_forward.default
_BACKWARD = torch.ops.hystar_fast.style_nce_backward.default


class _StyleNCE(torch.autograd.Function):
    """The loss of every row, or its mean, with detached weights; saves one N x N matrix and the unit rows."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, target: Tensor, *arguments: Any) -> Tensor:
        loss, *saved = _FORWARD(query, target, *arguments, True)
        ctx.save_for_backward(*saved)
        ctx.temperature, ctx.dtypes = arguments[1], (query.dtype, target.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        grads = _BACKWARD(dloss, *ctx.saved_tensors, ctx.temperature, *needs)
        dquery, dtarget = style_nce_torch.in_dtypes(grads, ctx.dtypes, needs)
        return dquery, dtarget, None, None, None, None, None, None, None, None


class _Cosine(torch.autograd.Function):
    """sim [N, N] between the rows of both inputs, and which samples are finite in both [N, 1]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        units, lengths, finite = style_nce_torch.both_units(query, target)
        ctx.save_for_backward(units, lengths)
        ctx.dtypes = (query.dtype, target.dtype)
        ctx.mark_non_differentiable(finite)
        return units[0] @ units[1].mT, finite

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsim: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
        needs = ctx.needs_input_grad
        ones = dsim.new_ones(len(dsim))
        grads = _BACKWARD(ones, dsim, *ctx.saved_tensors, 1.0, *needs)
        return style_nce_torch.in_dtypes(grads, ctx.dtypes, needs)


def style_nce(
    query: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.07,
    gamma: float | str = 80.0,
    lam: float = 1.0,
    epsilon: float = 0.1,
    n_iter: int = 50,
    weights: str = "paper",
    plan_grad: str = "none",
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Contrast every query with its target and, weighted by how hard they are, with the other targets.

    Eq. 4-7 of the paper, with s_ij the cosine of query i and target j::

        loss_i = -log( e^(s_ii/temperature) / (e^(s_ii/temperature) + gamma sum_{j != i} T_ij e^(s_ij/temperature)) )
        T      = argmin <C, T> - epsilon H(T)  with  T 1 = 1,  T' 1 = 1,  C_ij = e^((1 - s_ij)/lam),  C_ii = inf

    Args:
        query: Embeddings ``[N, D]``; float16, bfloat16, float32 or float64. Normalised inside, in float32 or wider:
            rows that are normalised already give the same loss, and the same gradient once it has passed through
            their own normalisation.
        target: ``[N, D]``; row i is the positive of row i of query, every other row one of its negatives.
        temperature: Divides the cosines.
        gamma: Total weight of a row's negatives, the positive having weight 1; N - 1 with uniform weights is InfoNCE.
            ``"auto"`` is 80/47 a negative: the paper's 80 at its batch of 48, and the same ratio at any other.
        lam: How strongly the cost singles out hard negatives ("authors": the entropy of the plan).
        epsilon: Entropy of the plan. The paper does not give it; 0.1 converges in 50 iterations at N = 48.
        n_iter: Sinkhorn iterations.
        weights: ``"paper"``, Eq. 5; ``"authors"``, what their code computes: the plan of cost s - 1 with entropy
            ``lam``, which favours easy negatives; ``"uniform"``, InfoNCE with gamma.
        plan_grad: Whether gradients pass through the weights: ``"none"``, ``"unroll"`` (exact for n_iter steps) or
            ``"implicit"`` (of the converged plan).
        mask: bool ``[N, N]``, True where target j is not a negative of query i (the same object, say). The diagonal
            needs no entry.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        The mean loss, or the loss of every row ``[N]``: float64 where an input is, else float32.

        A row without negatives (N = 1, or all of them masked) has loss 0. Where the mask leaves no doubly stochastic
        plan at all (with labels: a class of more than N/2) the constraint on columns is dropped for that batch: the
        weights of a row are the softmax of -C/epsilon over its negatives. A zero vector has cosine 0 with everything
        and no gradient. A sample with NaN or inf in its query or target has loss NaN and no gradient, and is nobody's
        negative: with ``reduction="none"`` the others stay finite.

    Gradients:
        query and target, each in its dtype; first order only.

    Cost:
        6 N^2 D FLOPs forward and backward, and the Sinkhorn iterations. Three N x N matrices in the dtype of the loss
        while it runs; one, and the unit rows, kept for the backward; with plan_grad what the Sinkhorn backward keeps
        besides. On the CPU a small batch is one call of C++ a direction. With detached weights a batch of more than
        11,585 (8,192 in float64) keeps none: its rows are made anew in every iteration, N^2 D multiply-adds each.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or value is wrong.

    Source:
        Hystar, Eq. 3-7; docs/algorithms/style_nce.md.

    Example:
        >>> import torch
        >>> from hystar_fast import style_nce
        >>> query, target = torch.randn(8, 16), torch.randn(8, 16)
        >>> infonce = torch.nn.functional.cross_entropy(
        ...     torch.cosine_similarity(query[:, None], target, dim=-1) / 0.07, torch.arange(8)
        ... )
        >>> torch.allclose(style_nce(query, target, weights="uniform", gamma=7.0), infonce)
        True
    """
    _check_inputs(query, target, mask)
    check_options(temperature, gamma, lam, epsilon, n_iter, weights, plan_grad, reduction)
    strength = None if isinstance(gamma, str) else float(gamma)
    numbers, mean = (float(temperature), strength, float(lam), float(epsilon), n_iter), reduction == "mean"
    detached = plan_grad == "none" or weights == "uniform"
    if detached and style_nce_stream.pays(query.shape[0], style_nce_torch.loss_dtype(query, target)):
        return style_nce_stream.style_nce(query, target, mask, *numbers, weights, mean)
    if not (torch.is_grad_enabled() and (query.requires_grad or target.requires_grad)):
        loss: Tensor = _FORWARD(query, target, mask, *numbers, weights, mean, False)[0]
        return loss
    if detached:
        loss = _StyleNCE.apply(query, target, mask, *numbers, weights, mean)
        return loss
    with torch.autocast(query.device.type, enabled=False):
        loss = _with_plan_gradient(query, target, mask, *numbers, weights, plan_grad)
    return loss.mean() if mean else loss


def _with_plan_gradient(
    query: Tensor,
    target: Tensor,
    mask: Tensor | None,
    temperature: float,
    gamma: float | None,
    lam: float,
    epsilon: float,
    n_iter: int,
    weights: str,
    plan_grad: str,
) -> Tensor:
    """The same loss as a composition that autograd follows through the plan."""
    sim, finite = _Cosine.apply(query, target)
    forbidden = style_nce_torch.forbid(mask, finite)
    cost = style_nce_torch.cost(sim, weights, lam)
    plan = style_nce_torch.transport(cost, style_nce_torch.entropy(weights, lam, epsilon), n_iter, forbidden, plan_grad)
    held = plan > 0
    logits = sim / temperature + torch.where(held, plan, 1).log()
    if gamma is None:
        logits = logits + style_nce_torch.auto_gamma(forbidden, sim.dtype).log()
    else:
        logits = logits + math.log(gamma)
    positive = sim.diagonal() / temperature
    excess = torch.where(held, logits, -math.inf).logsumexp(1) - positive
    loss = torch.nn.functional.softplus(excess, threshold=style_nce_torch.SOFTPLUS_IS_LINEAR)
    return torch.where(finite.squeeze(1), loss, math.nan)


def status() -> list[OpStatus]:
    """Say what style_nce runs on each device."""
    native, slow = extension(), "torch around hystar_fast.sinkhorn, closed-form backward"
    cpu = (
        slow
        if native is None
        else f"C++ with its Sinkhorn, large products in torch, {native.cpu_instruction_sets()[0]}"
    )
    ready, cuda_reason = cuda_ready()
    cuda = "CUDA C++ around its Sinkhorn in float32, products in torch; float64 and plan gradients in torch"
    return [
        OpStatus("style_nce", "cpu", cpu, why_not() or ""),
        OpStatus("style_nce", "cuda", cuda if ready else slow, "" if ready else cuda_reason),
    ]


def _check_inputs(query: Tensor, target: Tensor, mask: Tensor | None) -> None:
    for name, tensor in (("query", query), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise ValueError(f"{name} must have shape [N, D] with N and D at least 1, got {list(tensor.shape)}")
    if target.shape != query.shape:
        raise ValueError(f"target must have the shape of query, {list(query.shape)}, got {list(target.shape)}")
    if target.device != query.device:
        raise ValueError(f"target must be on the device of query, {query.device}, got {target.device}")
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool (True: not a negative), got {mask.dtype}")
    n = query.shape[0]
    if mask.shape != (n, n):
        raise ValueError(f"mask must have shape [N, N] = [{n}, {n}], got {list(mask.shape)}")
    if mask.device != query.device:
        raise ValueError(f"mask must be on the device of query, {query.device}, got {mask.device}")


def check_options(
    temperature: float,
    gamma: float | str,
    lam: float,
    epsilon: float,
    n_iter: int,
    weights: str,
    plan_grad: str,
    reduction: str,
) -> None:
    """Raise TypeError or ValueError for an option of style_nce that cannot be."""
    if isinstance(gamma, str) and gamma != "auto":
        raise ValueError(f"gamma must be a positive number or 'auto', got {gamma!r}")
    numbers = {"temperature": temperature, "gamma": gamma, "lam": lam, "epsilon": epsilon}
    for name, number in numbers.items():
        if isinstance(number, str) and name == "gamma":
            continue
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {number}")
    if isinstance(n_iter, bool) or not isinstance(n_iter, int):
        raise TypeError(f"n_iter must be an int, got {type(n_iter).__name__}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}")
    choices = {
        "weights": (weights, WEIGHTS),
        "plan_grad": (plan_grad, PLAN_GRADS),
        "reduction": (reduction, REDUCTIONS),
    }
    for name, (choice, allowed) in choices.items():
        if choice not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {choice!r}")
