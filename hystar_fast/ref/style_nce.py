"""StyleNCE in plain torch: differentiable in both inputs, any device, float64 kept as float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hystar_fast.ref.sinkhorn import SinkhornStatus, sinkhorn

# csrc/constants.h repeats these three. exp((1 - sim) / lam) is at most exp(60): above that the plan is an assignment in
# any precision, and float32 would reach infinity, which forbids a pair. gamma="auto" keeps the ratio of the paper's
# gamma, 80, to the 47 negatives of its batch.
WEIGHTS = ("paper", "authors", "uniform")
MAX_EXPONENT = 60.0
AUTO_GAMMA = 80.0 / 47.0


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
    """``-log(e^(s_ii/t) / (e^(s_ii/t) + gamma sum_j w_ij e^(s_ij/t)))``: the truth of :func:`hystar_fast.style_nce`.

    Differs from the op in two ways: autograd differentiates it, and inputs are not checked.
    """
    dtype = torch.promote_types(torch.promote_types(query.dtype, target.dtype), torch.float32)
    q, q_finite = _unit(query.to(dtype))
    t, t_finite = _unit(target.to(dtype))
    sim = q @ t.mT

    finite = q_finite & t_finite
    forbidden = torch.eye(len(sim), dtype=torch.bool, device=sim.device) | ~finite | ~finite.mT
    if mask is not None:
        forbidden = forbidden | mask
    negatives = (~forbidden).sum(1, keepdim=True).to(dtype)

    if weights == "uniform":
        weight = (~forbidden).to(dtype) / negatives.clamp_min(1)
    else:
        fixed = sim.detach() if plan_grad == "none" else sim
        if weights == "paper":
            cost, scale = torch.exp(((1 - fixed) / lam).clamp(max=MAX_EXPONENT)), epsilon
        else:
            cost, scale = fixed - 1, lam
        weight = _plan(cost, scale, n_iter, forbidden, plan_grad)

    strength = negatives.clamp_min(1) * AUTO_GAMMA if isinstance(gamma, str) else torch.full_like(negatives, gamma)
    held = weight > 0
    logits = sim / temperature + torch.where(held, weight, 1).log() + strength.log()
    excess = torch.where(held, logits, -math.inf).logsumexp(1) - sim.diagonal() / temperature
    loss = torch.nn.functional.softplus(excess, threshold=88.0)
    loss = torch.where(finite.squeeze(1), loss, math.nan)
    return loss.mean() if reduction == "mean" else loss


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length one, and which rows are finite; a zero or non-finite row becomes zero, without gradient.

    A row is scaled by its peak first, so that no square overflows or vanishes.
    """
    peak = x.detach().abs().amax(1, keepdim=True)
    finite = peak.isfinite()
    held = finite & (peak > 0)
    x = torch.where(held, x, 1)
    x = x / torch.where(held, peak, 1)
    return torch.where(held, x / torch.linalg.vector_norm(x, dim=1, keepdim=True), 0), finite


def _plan(cost: Tensor, epsilon: float, n_iter: int, forbidden: Tensor, plan_grad: str) -> Tensor:
    """The plan of Eq. 6-7, or, where the mask leaves none, of the same problem without its column constraint."""
    plan, info = sinkhorn(cost, epsilon, n_iter, mask=forbidden, grad=plan_grad, return_info=True)
    barred = forbidden.all(1, keepdim=True)
    rows = (-cost / epsilon).masked_fill(forbidden & ~barred, -math.inf).softmax(1)
    return torch.where(info.status == SinkhornStatus.INFEASIBLE, rows.masked_fill(forbidden, 0), plan)
