"""StyleNCE forward and backward in torch, on any device, around hystar_fast.sinkhorn.

The backward of Eq. 4 with detached weights has a closed form. With p_i the softmax of row i of the denominator,
d loss_i / d sim_ij = (p_ij - [i = j]) / temperature. So the forward keeps one N x N matrix, `slope` = p_ij - [i = j],
in the memory of the plan, and the backward is two GEMMs. Rows are processed in blocks: only sim, cost and plan are N x
N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.sinkhorn import sinkhorn
from hystar_fast.ref.sinkhorn import SinkhornStatus
from hystar_fast.ref.style_nce import AUTO_GAMMA, MAX_EXPONENT

_BLOCK_ELEMENTS = 1 << 18
_INFEASIBLE = int(SinkhornStatus.INFEASIBLE)  # torch.compile treats a tensor and an IntEnum as never equal
SOFTPLUS_IS_LINEAR = 88.0
"""Below this limit exp does not overflow in float32, and above it log(1 + e^x) is x."""


def forward(
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
    """Return the loss of every row or its mean, and for the backward slope [N, N], units [2, N, D], lengths [2, N]."""
    dtype = loss_dtype(query, target)
    with without_autocast(query.device.type):
        units, lengths, finite = both_units(query, target)
        sim = units[0] @ units[1].mT
        forbidden = forbidden_pairs(mask, finite)
        if weights == "uniform":
            weight = uniform_weights(forbidden, dtype)
        else:
            weight = plan_weights(cost(sim, weights, lam), plan_entropy(weights, lam, epsilon), n_iter, forbidden)
        loss, slope = loss_and_slope(sim, weight, forbidden, temperature, gamma)
        loss.masked_fill_(~finite.squeeze(1), math.nan)
    if mean:
        loss = loss.mean()
    if not keep:
        slope, units, lengths = loss.new_empty(0), loss.new_empty(0), loss.new_empty(0)
    return loss, slope, units, lengths


def backward(
    dloss: Tensor,
    slope: Tensor,
    units: Tensor,
    lengths: Tensor,
    temperature: float,
    needs_dquery: bool,
    needs_dtarget: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of both inputs, in the dtype of the unit rows. One that is not needed is empty.

    `dloss` is the gradient of every row [N], or of their mean [].
    """
    q, t = units.unbind()
    q_length, t_length = lengths.unsqueeze(2).unbind()
    dquery, dtarget = q.new_empty(0), t.new_empty(0)
    with without_autocast(q.device.type):
        weight = dloss / (temperature * len(q)) if dloss.dim() == 0 else dloss.unsqueeze(1) / temperature
        if needs_dquery:
            dquery = unit_backward((slope @ t).mul_(weight), q, q_length)
        if needs_dtarget:
            dtarget = unit_backward(slope.mT @ (q * weight), t, t_length)
    return dquery, dtarget


def loss_dtype(query: Tensor, target: Tensor) -> torch.dtype:
    """Return the dtype of the loss: float64 if an input is float64, else float32."""
    return torch.float64 if torch.float64 in (query.dtype, target.dtype) else torch.float32


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of length one, the lengths they had, and whether they are finite.

    A row that is zero or not finite becomes zero, with length inf. A row is divided by its largest value first, so that
    no square overflows or underflows.
    """
    peak = x.abs().amax(1, keepdim=True)
    finite = peak < math.inf
    empty = ~(finite & (peak > 0))
    peak.masked_fill_(empty, math.inf)
    y = x / peak
    length = torch.linalg.vector_norm(y, dim=1, keepdim=True).masked_fill_(empty, math.inf)
    y.div_(length).nan_to_num_(nan=0.0)
    return y, length.mul_(peak), finite


def both_units(query: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the unit rows [2, N, D] and lengths [2, N] of both inputs, and which samples are finite in both [N, 1]."""
    dtype = loss_dtype(query, target)
    q, q_length, q_finite = unit_rows(query.to(dtype))
    t, t_length, t_finite = unit_rows(target.to(dtype))
    return torch.stack([q, t]), torch.stack([q_length, t_length]).squeeze(2), q_finite & t_finite


def unit_backward(dy: Tensor, y: Tensor, length: Tensor) -> Tensor:
    """Return (dy - y <y, dy>) / length: the gradient of the rows that were normalised to y."""
    return torch.addcmul(dy, y, torch.linalg.vecdot(y, dy).unsqueeze(1), value=-1).div_(length)


def forbidden_pairs(mask: Tensor | None, finite: Tensor) -> Tensor:
    """Return True for pairs that are not negatives: positives, masked pairs, pairs with a sample that is not finite."""
    forbidden = ~(finite & finite.mT)
    if mask is not None:
        forbidden |= mask
    forbidden.fill_diagonal_(True)
    return forbidden


def cost(sim: Tensor, weights: str, lam: float) -> Tensor:
    """Return the cost of Eq. 5 without its infinite diagonal, or that of the authors' code."""
    if weights == "paper":
        return (1 - sim).mul_(1 / lam).clamp_(max=MAX_EXPONENT).exp_()
    return sim - 1


def plan_entropy(weights: str, lam: float, epsilon: float) -> float:
    """Return the entropy of the plan: epsilon in the paper, lam in the authors' code."""
    return epsilon if weights == "paper" else lam


def uniform_weights(forbidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return equal weights of sum 1 for the negatives of a row."""
    weight = (~forbidden).to(dtype)
    return weight.div_(weight.sum(1, keepdim=True).clamp_min_(1))


def auto_gamma(forbidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gamma="auto" of every row [N, 1]. It is never 0, because its logarithm is used."""
    return (~forbidden).sum(1, keepdim=True, dtype=dtype).clamp_min_(1).mul_(AUTO_GAMMA)


def plan_weights(cost: Tensor, epsilon: float, n_iter: int, forbidden: Tensor, grad: str = "none") -> Tensor:
    """Return the plan of Eq. 6-7 or, if the mask leaves none, that of the problem without its column constraint."""
    plan, info = sinkhorn(cost, epsilon, n_iter, mask=forbidden, grad=grad, return_info=True)
    infeasible = info.status == _INFEASIBLE
    if not cost.is_cuda and not torch.compiler.is_compiling() and not infeasible.item():
        return plan  # on CUDA, reading the status would cost a synchronisation
    without_negatives = forbidden.all(1, keepdim=True)
    rows = (-cost / epsilon).masked_fill(forbidden & ~without_negatives, -math.inf).softmax(1)
    return torch.where(infeasible, rows.masked_fill(forbidden, 0), plan)


def add_gamma_(logits: Tensor, forbidden: Tensor, gamma: float | None) -> Tensor:
    """Add log gamma in place; None is "auto", which differs from row to row."""
    if gamma is None:
        return logits.add_(auto_gamma(forbidden, logits.dtype).log_())
    return logits.add_(math.log(gamma))


def excess_loss(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Return log(sum over the negatives) - positive of each row, and the loss, its softplus."""
    excess = logits.logsumexp(1).sub_(positive)
    return excess, softplus(excess)


def softplus(excess: Tensor) -> Tensor:
    """Return log(1 + e^excess)."""
    return torch.nn.functional.softplus(excess, threshold=SOFTPLUS_IS_LINEAR)


def slope_(logits: Tensor, positive: Tensor, excess: Tensor, loss: Tensor, start: int) -> Tensor:
    """Turn the logits of the rows from `start` into their slope, in place. `excess` is overwritten."""
    logits.sub_((positive + loss).unsqueeze(1)).exp_()
    logits.diagonal(start).copy_(excess.sigmoid_().neg_())
    return logits


def in_dtypes(
    grads: tuple[Tensor, ...], dtypes: tuple[torch.dtype, ...], needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of both inputs for autograd: each in the dtype of its input, None if it is not needed."""
    dquery, dtarget = (g.to(dtype) if needed else None for g, dtype, needed in zip(grads, dtypes, needs, strict=True))
    return dquery, dtarget


def loss_and_slope(
    sim: Tensor, weight: Tensor, forbidden: Tensor, temperature: float, gamma: float | None
) -> tuple[Tensor, Tensor]:
    """Return Eq. 4 of every row, and the slope, which overwrites the weights: p_ij, and p_ii - 1 on the diagonal."""
    n = len(sim)
    positive = sim.diagonal() / temperature
    loss = torch.empty_like(positive)
    for start in range(0, n, block := max(1, _BLOCK_ELEMENTS // n)):
        part = slice(start, start + block)
        logits = weight[part].log_().add_(sim[part], alpha=1 / temperature)
        add_gamma_(logits, forbidden[part], gamma)
        excess, loss[part] = excess_loss(logits, positive[part])
        slope_(logits, positive[part], excess, loss[part], start)
    return loss, weight
