"""StyleNCE in plain torch: differentiable in both inputs, on any device. float64 stays float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hystar_fast.ref.sinkhorn import SinkhornStatus, sinkhorn

# csrc/constants.h repeats these three. exp((1 - sim) / lam) is limited to exp(60). Above that the plan is an assignment
# in any precision, and float32 would reach infinity, which would forbid a pair. gamma="auto" keeps the ratio of the
# paper's gamma, 80, to the 47 negatives of its batch.
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
    """Compute ``-log(e^(s_ii/t) / (e^(s_ii/t) + gamma sum_j w_ij e^(s_ij/t)))``, as :func:`hystar_fast.style_nce` does.

    Two differences from the op: autograd computes the gradient, and inputs are not checked.
    """
    dtype = torch.promote_types(torch.promote_types(query.dtype, target.dtype), torch.float32)
    q, q_finite = _unit(query.to(dtype))
    t, t_finite = _unit(target.to(dtype))
    with torch.autocast(q.device.type, enabled=False):
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
    positive = weight > 0
    logits = sim / temperature + torch.where(positive, weight, 1).log() + strength.log()
    excess = torch.where(positive, logits, -math.inf).logsumexp(1) - sim.diagonal() / temperature
    loss = torch.nn.functional.softplus(excess, threshold=88.0)
    loss = torch.where(finite.squeeze(1), loss, math.nan)
    return loss.mean() if reduction == "mean" else loss


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows scaled to length one, and which rows are finite. A zero or non-finite row becomes zero.

    A row is first divided by its largest entry, so that no square overflows or vanishes.
    """
    peak = x.detach().abs().amax(1, keepdim=True)
    finite = peak.isfinite()
    usable = finite & (peak > 0)
    x = torch.where(usable, x, 1)
    x = x / torch.where(usable, peak, 1)
    return torch.where(usable, x / torch.linalg.vector_norm(x, dim=1, keepdim=True), 0), finite


def _plan(cost: Tensor, epsilon: float, n_iter: int, forbidden: Tensor, plan_grad: str) -> Tensor:
    """Return the plan of Eq. 6-7. If the mask permits none, the column constraint is dropped."""
    plan, info = sinkhorn(cost, epsilon, n_iter, mask=forbidden, grad=plan_grad, return_info=True)
    all_forbidden = forbidden.all(1, keepdim=True)
    rows = (-cost / epsilon).masked_fill(forbidden & ~all_forbidden, -math.inf).softmax(1)
    return torch.where(info.status == SinkhornStatus.INFEASIBLE, rows.masked_fill(forbidden, 0), plan)
