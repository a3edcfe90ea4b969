"""The public function style_nce, the schema of its ops, their fake kernels and autograd."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.native import cuda_ready, extension_problem, instruction_set
from hystar_fast.ops.status import OpStatus
from hystar_fast.ops.style_nce import cpu, cuda, stream
from hystar_fast.ops.style_nce import torch as plain
from hystar_fast.ops.style_nce.checks import check_inputs, check_options, is_group
from hystar_fast.ops.transforms import check_not_batched, eager_op, first_order, is_transformed
from hystar_fast.ref.style_nce import style_nce as reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
for _device, _module in (("CPU", cpu), ("CUDA", cuda)):
    LIB.impl("style_nce_forward", _module.forward, _device)
    LIB.impl("style_nce_backward", _module.backward, _device)


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
    (n, d), dtype = query.shape, plain.loss_dtype(query, target)
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


_forward = eager_op(torch.ops.hystar_fast.style_nce_forward.default, cpu.forward, cuda.forward)
_backward = eager_op(torch.ops.hystar_fast.style_nce_backward.default, cpu.backward, cuda.backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, target, *ctx.options, keep = inputs
    ctx.save_for_backward(query, target, ctx.options[0], *(output[1:] if keep else ()))
    ctx.options = ctx.options[1:]


@first_order("style_nce")
def _backward_of_op(ctx: Any, dloss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the op itself, as exported programs call it; what was not kept is computed again."""
    query, target, mask, *saved = ctx.saved_tensors
    if not saved:
        saved = _forward(query, target, mask, *ctx.options, True)[1:]
    needs = ctx.needs_input_grad[:2]
    grads = _backward(dloss, *saved, ctx.options[0], *needs)
    return *plain.in_dtypes(grads, (query.dtype, target.dtype), needs), *(None,) * (len(ctx.options) + 2)


torch.library.register_autograd(
    "hystar_fast::style_nce_forward", _backward_of_op, setup_context=_setup_context, lib=LIB
)


class _StyleNCE(torch.autograd.Function):
    """The loss of every row, or its mean, with detached weights. It saves one N x N matrix and the unit rows."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, target: Tensor, *arguments: Any) -> Tensor:
        loss, *saved = _forward(query, target, *arguments, True)
        ctx.save_for_backward(*saved)
        ctx.temperature, ctx.dtypes = arguments[1], (query.dtype, target.dtype)
        return loss

    @staticmethod
    @first_order("style_nce")
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        grads = _backward(dloss, *ctx.saved_tensors, ctx.temperature, *needs)
        dquery, dtarget = plain.in_dtypes(grads, ctx.dtypes, needs)
        return dquery, dtarget, None, None, None, None, None, None, None, None


class _Cosine(torch.autograd.Function):
    """The cosines [N, N] of the rows of both inputs, and whether each sample is finite in both [N, 1]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        units, lengths, finite = plain.both_units(query, target)
        ctx.save_for_backward(units, lengths)
        ctx.dtypes = (query.dtype, target.dtype)
        ctx.mark_non_differentiable(finite)
        return units[0] @ units[1].mT, finite

    @staticmethod
    @first_order("style_nce")
    def backward(ctx: Any, dsim: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
        needs = ctx.needs_input_grad
        ones = dsim.new_ones(len(dsim))
        grads = _backward(ones, dsim, *ctx.saved_tensors, 1.0, *needs)
        return plain.in_dtypes(grads, ctx.dtypes, needs)


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
    group: ProcessGroup | None = None,
) -> Tensor:
    """Contrast every query with its target and with the other targets, weighted by how hard they are.

    Eq. 4-7 of the paper, with s_ij the cosine of query i and target j::

        loss_i = -log( e^(s_ii/temperature) / (e^(s_ii/temperature) + gamma sum_{j != i} T_ij e^(s_ij/temperature)) )
        T      = argmin <C, T> - epsilon H(T)  with  T 1 = 1,  T' 1 = 1,  C_ij = e^((1 - s_ij)/lam),  C_ii = inf

    Args:
        query: Embeddings ``[N, D]``; float16, bfloat16, float32 or float64. They are normalised here, in float32 or
            wider. Rows that are already normalised give the same loss, and the same gradient after it has passed
            through their own normalisation.
        target: ``[N, D]``. Row i is the positive of row i of query, and every other row is one of its negatives.
        temperature: Divides the cosines.
        gamma: Total weight of the negatives of a row; the positive has weight 1. N - 1 with uniform weights is InfoNCE.
            ``"auto"`` is 80/47 for each negative: the paper's 80 at its batch of 48, and the same ratio at other sizes.
        lam: A smaller value gives hard negatives more weight ("authors": the entropy of the plan).
        epsilon: Entropy of the plan. The paper does not give it; 0.1 converges in 50 iterations at N = 48.
        n_iter: Sinkhorn iterations.
        weights: ``"paper"``: Eq. 5. ``"authors"``: what their code computes, the plan of cost s - 1 with entropy
            ``lam``, which favours easy negatives. ``"uniform"``: InfoNCE with gamma.
        plan_grad: Gradients through the weights: ``"none"``, ``"unroll"`` (exact for n_iter iterations) or
            ``"implicit"`` (of the converged plan).
        mask: bool ``[N, N]``, True if target j is not a negative of query i (for example, the same object). The
            diagonal needs no entry.
        reduction: ``"mean"`` or ``"none"``.
        group: Processes of torch.distributed that share the batch: each gives its own rows, query and target
            ``[N_p, D]`` and mask ``[N_p, N]``, in the order of the ranks. The result is that of one process with all
            rows: the mean over all, equal on every process, or the losses of the own rows. The gradients of the own
            rows are complete, so *sum* the gradients of parameters over the processes (DistributedDataParallel
            averages them: multiply the loss by the number of processes). All processes must call with the same options,
            and all must go backward if one does. Such a call waits for the device.

    Returns:
        The mean loss, or the loss of every row ``[N]``: float64 if an input is float64, else float32.

        A row without negatives (N = 1, or all of them masked) has loss 0. If the mask leaves no doubly stochastic plan
        (with labels: if a class has more than N/2 samples), the constraint on columns is dropped for this batch, and
        the weights of a row are the softmax of -C/epsilon over its negatives. A zero vector has cosine 0 with every
        other vector, and no gradient. A sample with NaN or inf in its query or target has loss NaN and no gradient, and
        is no negative of other samples: with ``reduction="none"`` their losses stay finite.

    Gradients:
        query and target, each in its dtype; first order only.

    Cost:
        6 N^2 D FLOPs forward and backward, and the Sinkhorn iterations. The forward needs three N x N matrices in the
        dtype of the loss, and keeps one of them and the unit rows for the backward; with plan_grad also what the
        backward of Sinkhorn needs. On the CPU a small batch is one call of C++ in each direction. With detached
        weights, a batch of more than 11,585 (8,192 in float64) has no N x N matrix: every iteration computes the rows
        again, with N^2 D multiply-adds; float16 and bfloat16 stay in their type there. With a group, such a batch is
        not gathered (only its mask is, by one process, if it may leave no plan): targets travel in a ring, work and
        memory of a process fall with the number of processes, and an iteration computes the rows twice. A smaller
        batch is gathered, and computed by every process.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is wrong.

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
    try:
        check_inputs(query, target, mask, group)
        check_options(temperature, gamma, lam, epsilon, n_iter, weights, plan_grad, reduction)
    except (TypeError, ValueError):
        if group is not None and is_group(group):  # the other processes wait for this one
            from hystar_fast.ops.style_nce.group import announce_failure

            announce_failure(group)
        raise
    n_iter = int(n_iter)
    strength = None if isinstance(gamma, str) else float(gamma)
    mean, detached = reduction == "mean", plan_grad == "none" or weights == "uniform"
    options: dict[str, Any] = {
        "temperature": temperature,
        "gamma": gamma,
        "lam": lam,
        "epsilon": epsilon,
        "n_iter": n_iter,
        "weights": weights,
        "plan_grad": plan_grad,
    }
    if group is not None:
        from hystar_fast.ops.style_nce.group import group_loss
        from hystar_fast.ops.style_nce.ring import Options

        ring_options = Options(float(temperature), strength, float(lam), float(epsilon), n_iter, weights)
        whole = partial(style_nce, **options)
        return group_loss(query, target, mask, group, ring_options, whole, mean=mean, detached=detached)
    if is_transformed(query, target):
        for name, tensor in (("query", query), ("target", target), ("mask", mask)):
            check_not_batched(name, tensor, "it needs one batch of pairs, [N, D]")
        return reference(query, target, mask=mask, reduction=reduction, **options)
    numbers = (float(temperature), strength, float(lam), float(epsilon), n_iter)
    is_exporting = torch.compiler.is_exporting()  # then the batch may be symbolic, and the op is differentiated
    if detached and not is_exporting and stream.should_stream(query.shape[0], plain.loss_dtype(query, target)):
        return stream.streamed_loss(query, target, mask, *numbers, weights, mean)
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or target.requires_grad)
    if not needs_gradient or (detached and is_exporting):
        loss: Tensor = _forward(query, target, mask, *numbers, weights, mean, False)[0]
        return loss
    if detached:
        loss = _StyleNCE.apply(query, target, mask, *numbers, weights, mean)
        return loss
    with without_autocast(query.device.type):
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
    """Return the same loss as a composition of functions, so that autograd differentiates the plan too."""
    sim, finite = _Cosine.apply(query, target)
    forbidden = plain.forbidden_pairs(mask, finite)
    cost = plain.cost(sim, weights, lam)
    plan = plain.plan_weights(cost, plain.plan_entropy(weights, lam, epsilon), n_iter, forbidden, plan_grad)
    has_weight = plan > 0
    logits = sim / temperature + torch.where(has_weight, plan, 1).log()
    if gamma is None:
        logits = logits + plain.auto_gamma(forbidden, sim.dtype).log()
    else:
        logits = logits + math.log(gamma)
    positive = sim.diagonal() / temperature
    excess = torch.where(has_weight, logits, -math.inf).logsumexp(1) - positive
    loss = torch.nn.functional.softplus(excess, threshold=plain.SOFTPLUS_IS_LINEAR)
    return torch.where(finite.squeeze(1), loss, math.nan)


def status() -> list[OpStatus]:
    """Return the implementation of style_nce on each device."""
    slow, isa = "torch around hystar_fast.sinkhorn, closed-form backward", instruction_set()
    on_cpu = slow if isa is None else f"C++ with its Sinkhorn, large products in torch, {isa}"
    ready, problem = cuda_ready()
    on_cuda = "CUDA C++ around its Sinkhorn in float32, products in torch; float64 and plan gradients in torch"
    return [
        OpStatus("style_nce", "cpu", on_cpu, extension_problem() or ""),
        OpStatus("style_nce", "cuda", on_cuda if ready else slow, problem),
    ]
