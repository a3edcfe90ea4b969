"""StyleNCE for batches whose N x N matrices do not fit into memory: blocks of rows are computed when they are used.

With logits_ij = s_ij/temperature + log gamma + K_ij + u_i + v_j, everything in Eq. 4-7 follows from the unit rows and
the two potentials. An iteration computes each block of rows once, for its u and its share of the column sums. The
backward computes them once more. It needs memory for a few blocks and vectors, but an N^2 D product in every iteration.
So it saves memory, and not time. It runs on any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.style_nce.torch import (
    add_gamma_,
    cost,
    excess_loss,
    in_dtypes,
    loss_dtype,
    plan_entropy,
    slope_,
    unit_backward,
)
from hystar_fast.ops.style_nce.units import Units, combine, cosines, keeps_half, restored, saved, units_of
from hystar_fast.ops.transforms import first_order
from hystar_fast.ref.sinkhorn_feasibility import has_plan

_BLOCK_ELEMENTS = 1 << 25
_LOWEST = {torch.float32: -1e30, torch.float64: -1e300}
MAX_MATRIX_BYTES = 1 << 29
"""The size of an N x N matrix above which a batch is streamed: N = 11,585 in float32."""


def should_stream(n: int, dtype: torch.dtype) -> bool:
    """Return whether a batch of n is streamed."""
    return n * n * dtype.itemsize > MAX_MATRIX_BYTES


@dataclass(frozen=True)
class Rows:
    """The rows of the cosines and of the plan's log kernel, computed one block at a time."""

    q: Units  # [N, D]
    t: Units  # [N, D]
    finite: Tensor  # [N] bool
    mask: Tensor | None  # [N, N] bool
    weights: str
    lam: float
    epsilon: float

    @property
    def dtype(self) -> torch.dtype:
        return self.q.values.dtype if self.q.inverse is None else self.q.inverse.dtype

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield (rows, sim, K, forbidden) of each block. K = -cost/epsilon, shifted to a maximum of 0 in each row."""
        n = len(self.finite)
        for start in range(0, n, block := max(1, _BLOCK_ELEMENTS // n)):
            rows = slice(start, min(start + block, n))
            sim = cosines(self.q.part(rows), self.t)
            forbidden = ~(self.finite[rows, None] & self.finite)
            if self.mask is not None:
                forbidden |= self.mask[rows]
            forbidden.diagonal(start).fill_(True)
            kernel = log_kernel(sim, forbidden, self.weights, self.lam, self.epsilon)
            highest = kernel.amax(1, keepdim=True).nan_to_num_(neginf=0.0)
            yield rows, sim, shift_(kernel, highest, forbidden), forbidden


def log_kernel(sim: Tensor, forbidden: Tensor, weights: str, lam: float, epsilon: float) -> Tensor:
    """Return -cost / epsilon, -inf where a pair is forbidden."""
    if weights == "uniform":
        kernel = torch.zeros_like(sim)
    else:
        kernel = cost(sim, weights, lam).mul_(-1 / plan_entropy(weights, lam, epsilon))
    return kernel.masked_fill_(forbidden, -math.inf)


def shift_(kernel: Tensor, highest: Tensor, forbidden: Tensor) -> Tensor:
    """Subtract the largest value of each row [n, 1]; what is allowed stays finite."""
    return kernel.sub_(highest).clamp_min_(_LOWEST[kernel.dtype]).masked_fill_(forbidden, -math.inf)


def add_exp_(high: Tensor, total: Tensor, part: slice, logits: Tensor, dim: int) -> None:
    """Add the exponentials of a block, which is overwritten, to total * exp(high), along a dimension of the block."""
    top = torch.maximum(high[part], logits.amax(dim))
    base = without_infinities_(top.clone())
    total[part] = total[part] * (high[part] - base).exp() + logits.sub_(base.unsqueeze(dim)).exp_().sum(dim)
    high[part] = top


def potentials(rows: Rows, n_iter: int) -> Tensor:
    """Return u and v [2, N] after n_iter iterations. If the mask leaves no plan, they give the softmax of each row."""
    u, v = (torch.zeros_like(rows.finite, dtype=rows.dtype) for _ in range(2))
    softmax_u = torch.empty_like(u)
    has_entry = torch.zeros_like(rows.finite)  # of each column
    has_no_plan = ~rows.finite.all()
    for iteration in range(1 if rows.weights == "uniform" else n_iter):
        high, total = torch.full_like(v, -math.inf), torch.zeros_like(v)
        for part, _, kernel, forbidden in rows:
            u[part] = without_infinities_(-(kernel + v).logsumexp(1))
            if iteration == 0:
                softmax_u[part] = u[part]  # v is 0 here
                has_no_plan = has_no_plan | forbidden.all(1).any()
                has_entry |= ~forbidden.all(0)
            add_exp_(high, total, slice(None), kernel.add_(u[part, None]), 0)
        v = without_infinities_(-(high + total.log()))
    has_no_plan = has_no_plan | ~has_entry.all()
    if rows.weights == "uniform":
        has_no_plan = torch.ones_like(has_no_plan)  # uniform weights have no constraint on columns
    elif rows.mask is not None and not has_no_plan:
        has_no_plan = has_no_plan | _mask_leaves_no_plan(rows, rows.mask, u, v)
    return torch.stack([torch.where(has_no_plan, softmax_u, u), torch.where(has_no_plan, 0.0, v)])


def without_infinities_(x: Tensor) -> Tensor:
    """Set the potentials of rows and columns without an allowed entry, which have no effect, to 0."""
    return x.masked_fill_(x.isinf(), 0.0)


def _mask_leaves_no_plan(rows: Rows, mask: Tensor, u: Tensor, v: Tensor) -> bool:
    """Return whether no doubly stochastic plan exists on the allowed entries. This waits for the device."""
    off = torch.zeros_like(u)
    for part, _, kernel, _ in rows:
        off[part] = kernel.add_(u[part, None]).add_(v).exp_().sum(1) - 1
    if float(off.abs().sum()) < 1:
        return False  # the row sums of a problem without a plan are off by 2 at least
    forbidden = mask.cpu().clone()
    forbidden.fill_diagonal_(True)
    return not has_plan(~forbidden)


def _logits(
    part: slice, sim: Tensor, kernel: Tensor, forbidden: Tensor, uv: Tensor, temperature: float, gamma: float | None
) -> tuple[Tensor, Tensor]:
    """Return the logits of the negatives, which overwrite the kernel, and that of the positive."""
    positive = sim.diagonal(part.start) / temperature
    logits = kernel.add_(uv[0, part, None]).add_(uv[1]).add_(sim, alpha=1 / temperature)
    return add_gamma_(logits, forbidden, gamma), positive


def losses(rows: Rows, uv: Tensor, temperature: float, gamma: float | None) -> Tensor:
    """Return Eq. 4 of every row [N]; NaN for a sample that is not finite."""
    loss = torch.empty_like(uv[0])
    for part, sim, kernel, forbidden in rows:
        logits, positive = _logits(part, sim, kernel, forbidden, uv, temperature, gamma)
        loss[part] = excess_loss(logits, positive)[1]
    return loss.masked_fill_(~rows.finite, math.nan)


def gradients(
    rows: Rows,
    lengths: Tensor,
    uv: Tensor,
    dloss: Tensor,
    temperature: float,
    gamma: float | None,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of query and target, in the dtype of the units; the weights are constants."""
    values = rows.t.values
    dq = torch.empty_like(values) if needs[0] else None
    dt = torch.zeros_like(values, dtype=rows.dtype) if needs[1] else None
    largest = dloss.abs().nan_to_num().amax().clamp_min(torch.finfo(dloss.dtype).tiny)
    relative = dloss / largest
    for part, sim, kernel, forbidden in rows:
        logits, positive = _logits(part, sim, kernel, forbidden, uv, temperature, gamma)
        slope = slope_(logits, positive, *excess_loss(logits, positive), part.start)
        if dq is not None:
            of_units = combine(slope, rows.t).mul_(dloss[part, None] / temperature)
            dq[part] = unit_backward(of_units, rows.q.part(part).wide(), lengths[0, part, None])
        if dt is not None:
            dt += combine(slope.mT, rows.q.part(part).scaled(relative[part]))
    return dq, None if dt is None else project(dt.mul_(largest / temperature), rows.t, lengths[1])


def project(of_units: Tensor, units: Units, length: Tensor) -> Tensor:
    """Return the gradient of rows from that of their unit rows [n, D], in the dtype of the units."""
    result = torch.empty_like(units.values)
    for start in range(0, len(result), block := max(1, _BLOCK_ELEMENTS // max(1, result.shape[1]))):
        part = slice(start, start + block)
        result[part] = unit_backward(of_units[part], units.part(part).wide(), length[part, None])
    return result


LIB = torch.library.Library("hystar_fast", "FRAGMENT")
_OPTIONS = "Tensor? mask, float temperature, float? gamma, float lam, float epsilon, int n_iter, str weights"
LIB.define(
    f"style_nce_stream_forward(Tensor query, Tensor target, {_OPTIONS}, bool mean) "
    "-> (Tensor loss, Tensor uv, Tensor units, Tensor lengths, Tensor finite)"
)
LIB.define(
    f"style_nce_stream_backward(Tensor dloss, Tensor uv, Tensor units, Tensor lengths, Tensor finite, {_OPTIONS}, "
    "bool needs_dquery, bool needs_dtarget) -> (Tensor, Tensor)"
)


def _forward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with without_autocast(query.device.type):
        q, t, lengths, finite = units_of(query, target)
        rows = Rows(q, t, finite, mask, weights, lam, epsilon)
        uv = potentials(rows, n_iter)
        loss = losses(rows, uv, temperature, gamma)
        units, lengths = saved(q, t, lengths)
    return loss.mean() if mean else loss, uv, units, lengths, finite


def _backward(
    dloss: Tensor,
    uv: Tensor,
    units: Tensor,
    lengths: Tensor,
    finite: Tensor,
    mask: Tensor | None,
    temperature: float,
    gamma: float | None,
    lam: float,
    epsilon: float,
    n_iter: int,
    weights: str,
    needs_dquery: bool,
    needs_dtarget: bool,
) -> tuple[Tensor, Tensor]:
    q, t, lengths = restored(units, lengths)
    if dloss.dim() == 0:
        dloss = (dloss / len(finite)).expand(len(finite))
    with without_autocast(units.device.type):
        rows = Rows(q, t, finite, mask, weights, lam, epsilon)
        grads = gradients(rows, lengths, uv, dloss, temperature, gamma, (needs_dquery, needs_dtarget))
        dquery, dtarget = (units.new_empty(0) if grad is None else grad for grad in grads)
    return dquery, dtarget


for _device in ("CPU", "CUDA"):
    LIB.impl("style_nce_stream_forward", _forward, _device)
    LIB.impl("style_nce_stream_backward", _backward, _device)


@torch.library.register_fake("hystar_fast::style_nce_stream_forward", lib=LIB)
def _forward_fake(query: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (n, d), dtype = query.shape, loss_dtype(query, target)
    half = keeps_half(query, target)
    loss, uv, lengths = (
        query.new_empty(shape, dtype=dtype) for shape in (() if options[-1] else (n,), (2, n), (4 if half else 2, n))
    )
    units = query.new_empty((2, n, d), dtype=query.dtype if half else dtype)
    return loss, uv, units, lengths, query.new_empty(n, dtype=torch.bool)


@torch.library.register_fake("hystar_fast::style_nce_stream_backward", lib=LIB)
def _backward_fake(dloss: Tensor, uv: Tensor, units: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    dquery, dtarget = (units.new_empty(units.shape[1:] if needed else 0) for needed in options[-2:])
    return dquery, dtarget


class _Streamed(torch.autograd.Function):
    """The loss of every row, or its mean, with detached weights. It saves the unit rows and the potentials."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, target: Tensor, mask: Tensor | None, *options: Any) -> Tensor:
        loss, *saved = torch.ops.hystar_fast.style_nce_stream_forward(query, target, mask, *options)
        ctx.save_for_backward(*saved, mask)
        ctx.options, ctx.dtypes = options[:-1], (query.dtype, target.dtype)
        return loss

    @staticmethod
    @first_order("style_nce")
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        grads = torch.ops.hystar_fast.style_nce_stream_backward(dloss, *ctx.saved_tensors, *ctx.options, *needs)
        return *in_dtypes(grads, ctx.dtypes, needs), *(None,) * (len(ctx.options) + 2)


def streamed_loss(query: Tensor, target: Tensor, *options: Any) -> Tensor:
    """Return :func:`hystar_fast.style_nce` with detached weights; options: mask, temperature ... weights, mean."""
    if torch.is_grad_enabled() and (query.requires_grad or target.requires_grad):
        return _Streamed.apply(query, target, *options)
    return torch.ops.hystar_fast.style_nce_stream_forward(query, target, *options)[0]
