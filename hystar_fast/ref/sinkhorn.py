"""The reference of the entropic transport plan (Eq. 5-7): the Sinkhorn iteration in the log domain, in plain torch.

One iteration is a row half-step and then a column half-step. It starts from v = 0, with K = -cost / epsilon:

    u_i = -logsumexp_j(K_ij + v_j)          v_j = log(N / M) - logsumexp_i(K_ij + u_i)

and plan = exp(u + K + v). The last half-step is that of the columns, so columns sum to N/M to within rounding, and rows
sum to 1 once the iteration has converged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from numbers import Integral, Real
from typing import Literal, overload

import torch
from torch import Tensor

from hystar_fast.ref.dense import check_dense, check_floating
from hystar_fast.ref.sinkhorn_feasibility import has_plan

CONVERGED_BELOW = 1e-3
"""The largest marginal error of a converged problem, if no `tol` is given."""

_SMALLEST_EPSILON = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
GRADS = ("unroll", "implicit", "none")


class SinkhornStatus(IntEnum):
    """The outcome of one problem; a value of `SinkhornInfo.status`."""

    CONVERGED = 0
    NOT_CONVERGED = 1
    INFEASIBLE = 2
    """The allowed entries permit no plan with these marginals. The plan returned is zero."""
    INVALID = 3
    """An allowed entry is NaN or -inf. The plan returned is NaN; other problems are not affected."""


@dataclass(frozen=True)
class SinkhornInfo:
    """The outcome of each problem of a batch. Every tensor has the shape of the batch.

    Attributes:
        iterations: int64, the number of iterations done; 0 if the problem is infeasible or invalid.
        max_marginal_error: The largest deviation of a row sum from 1, or of a column sum from N/M.
        status: int64, a value of `SinkhornStatus`.
    """

    iterations: Tensor
    max_marginal_error: Tensor
    status: Tensor

    @property
    def converged(self) -> Tensor:
        """True for the problems whose marginals are met."""
        return self.status == SinkhornStatus.CONVERGED


def check_arguments(
    cost: Tensor, epsilon: float, n_iter: int, mask: Tensor | None, grad: str, tol: float | None
) -> None:
    """Raise TypeError or ValueError for the first invalid argument."""
    check_floating("cost", cost)
    if cost.dim() < 2:
        raise ValueError(f"cost must have shape [..., N, M], got {list(cost.shape)}")
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real):
        raise TypeError(f"epsilon must be a number, got {type(epsilon).__name__}")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if epsilon < _SMALLEST_EPSILON and cost.dtype != torch.float64:
        least = f"{_SMALLEST_EPSILON:.2e}, so that no cost that matters is 0 in float32"
        raise ValueError(f"epsilon must be at least {least}, got {epsilon}; multiply it and cost by the same number")
    if isinstance(n_iter, bool) or not isinstance(n_iter, Integral):
        raise TypeError(f"n_iter must be an int, got {type(n_iter).__name__}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}")
    if grad not in GRADS:
        raise ValueError(f"grad must be one of {', '.join(GRADS)}, got {grad!r}")
    if mask is not None:
        _check_mask(cost, mask)
    if tol is not None:
        if isinstance(tol, bool) or not isinstance(tol, Real):
            raise TypeError(f"tol must be a number or None, got {type(tol).__name__}")
        if not 0 < tol < math.inf:
            raise ValueError(f"tol must be positive and finite, got {tol}")


def _check_mask(cost: Tensor, mask: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool (True forbids), got {mask.dtype}")
    check_dense("mask", mask)
    if mask.device != cost.device:
        raise ValueError(f"mask must be on the device of cost, {cost.device}, got {mask.device}")
    shape, needed = mask.shape, cost.shape
    pairs = zip(reversed(shape), reversed(needed), strict=False)
    if len(shape) > len(needed) or any(got not in (1, want) for got, want in pairs):
        raise ValueError(f"mask must have a shape that broadcasts to that of cost, {list(needed)}, got {list(shape)}")


@overload
def sinkhorn(
    cost: Tensor,
    epsilon: float,
    n_iter: int = 50,
    *,
    mask: Tensor | None = None,
    grad: str = "unroll",
    return_info: Literal[False] = False,
    tol: float | None = None,
) -> Tensor: ...


@overload
def sinkhorn(
    cost: Tensor,
    epsilon: float,
    n_iter: int = 50,
    *,
    mask: Tensor | None = None,
    grad: str = "unroll",
    return_info: Literal[True],
    tol: float | None = None,
) -> tuple[Tensor, SinkhornInfo]: ...


def sinkhorn(
    cost: Tensor,
    epsilon: float,
    n_iter: int = 50,
    *,
    mask: Tensor | None = None,
    grad: str = "unroll",
    return_info: bool = False,
    tol: float | None = None,
) -> Tensor | tuple[Tensor, SinkhornInfo]:
    """Compute `hystar_fast.sinkhorn` in plain torch.

    Autograd unrolls the loop, and the implicit gradient uses a pseudo-inverse.
    """
    check_arguments(cost, epsilon, n_iter, mask, grad, tol)
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    batch, (n, m) = cost.shape[:-2], cost.shape[-2:]
    if n == 0 or m == 0:
        status = torch.full(batch, SinkhornStatus.INFEASIBLE if n else SinkhornStatus.CONVERGED, device=cost.device)
        error = torch.full(batch, 1.0 if n else 0.0, dtype=cost.dtype, device=cost.device)
        return (cost * 0, SinkhornInfo(torch.zeros_like(status), error, status)) if return_info else cost * 0

    kernel, allowed, invalid, infeasible = log_kernel(cost, mask, epsilon)
    # detached, because torch.no_grad does not stop the tangents of torch.func.jvp
    iterated = kernel if grad == "unroll" else kernel.detach()
    u, v, iterations = _iterate(iterated, math.log(n / m), n_iter, tol)
    plan = (u.unsqueeze(-1) + iterated + v.unsqueeze(-2)).exp()

    infeasible = infeasible | _infeasible(plan.detach(), allowed)
    if grad == "implicit":
        plan = _attach_implicit(plan, kernel, allowed)
    plan = plan.masked_fill(infeasible[..., None, None], 0.0).masked_fill(invalid[..., None, None], math.nan)
    if not return_info:
        return plan
    stopped = infeasible | invalid
    rows, columns = plan.detach().sum(-1), plan.detach().sum(-2)
    error = torch.maximum((rows - 1).abs().amax(-1), (columns - n / m).abs().amax(-1))
    status = (error > (CONVERGED_BELOW if tol is None else tol)).long()
    status = status.masked_fill(infeasible, SinkhornStatus.INFEASIBLE).masked_fill(invalid, SinkhornStatus.INVALID)
    return plan, SinkhornInfo(iterations.masked_fill(stopped, 0), error, status)


def log_kernel(cost: Tensor, mask: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return K = -cost / epsilon, the allowed entries, the invalid problems and the clearly infeasible ones.

    K is -inf for a forbidden pair. Every row is shifted to a maximum of 0, which keeps digits. The iteration starts
    with a row half-step, so the shift changes u, but not the plan. K is 0 in invalid and infeasible problems, so that
    only finite numbers enter the iteration.
    """
    forbidden = cost.isposinf() if mask is None else cost.isposinf() | mask
    invalid = ((cost.isnan() | cost.isneginf()) & ~forbidden).flatten(-2).any(-1)
    infeasible = ~invalid & (forbidden.all(-1).any(-1) | forbidden.all(-2).any(-1))
    unusable = (invalid | infeasible)[..., None, None]
    allowed = ~forbidden | unusable
    cost = cost.masked_fill(unusable | ~allowed, 0.0)
    lowest = cost.detach().masked_fill(~allowed, math.inf).amin(-1, keepdim=True)
    kernel = ((lowest - cost) / epsilon).clamp_min(-1e30 if cost.dtype == torch.float32 else -1e300)
    return kernel.masked_fill(~allowed, -math.inf), allowed, invalid, infeasible


def _iterate(kernel: Tensor, log_column: float, n_iter: int, tol: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, v and the iterations done. With `tol`, a problem stops once its row error is at most `tol`."""
    u, v = torch.zeros_like(kernel[..., 0]), torch.zeros_like(kernel[..., 0, :])
    active = torch.ones(kernel.shape[:-2], dtype=torch.bool, device=kernel.device)
    iterations = torch.zeros_like(active, dtype=torch.int64)
    for k in range(n_iter):
        u_next = -torch.logsumexp(kernel + v.unsqueeze(-2), -1)
        if tol is not None and k > 0:
            active = active & (torch.expm1(u - u_next).abs().amax(-1) > tol)
        v_next = log_column - torch.logsumexp(kernel + u_next.unsqueeze(-1), -2)
        u, v = torch.where(active.unsqueeze(-1), u_next, u), torch.where(active.unsqueeze(-1), v_next, v)
        iterations = iterations + active
        if tol is not None and not bool(active.any()):
            break
    return u, v, iterations


def _attach_implicit(plan: Tensor, kernel: Tensor, allowed: Tensor) -> Tensor:
    """Give the plan the derivative of a converged plan: d plan = plan * (dK + du + dv), with fixed marginals.

    The Jacobian of the marginals is singular, because in every connected part of the support a constant may be moved
    from u to v. Its pseudo-inverse chooses one solution. The plan is the same for all of them.
    """
    change = (kernel - kernel.detach()).masked_fill(~allowed, 0.0)
    moved = plan * change
    jacobian = torch.cat(
        [
            torch.cat([torch.diag_embed(plan.sum(-1)), plan], -1),
            torch.cat([plan.mT, torch.diag_embed(plan.sum(-2))], -1),
        ],
        -2,
    )
    marginals = torch.cat([moved.sum(-1), moved.sum(-2)], -1)
    with torch.autocast(plan.device.type, enabled=False):
        shift = (torch.linalg.pinv(jacobian, hermitian=True) @ marginals.unsqueeze(-1)).squeeze(-1)
    n = plan.shape[-2]
    return plan * (1 + change - shift[..., :n, None] - shift[..., None, n:])


def _infeasible(plan: Tensor, allowed: Tensor) -> Tensor:
    """Return True for the problems whose allowed entries permit no plan.

    After a column half-step of an infeasible problem, the sum over rows of |row - 1| is at least 2 gcd(N, M) / M, by
    Hall's theorem in whole units of mass. A smaller error proves that a plan exists. A maximum flow decides the others.
    """
    n, m = plan.shape[-2:]
    doubtful = (plan.sum(-1) - 1).abs().sum(-1) >= math.gcd(n, m) / m
    doubtful = doubtful & ~allowed.flatten(-2).all(-1)
    found = torch.zeros_like(doubtful).reshape(-1)
    problems = allowed.reshape(-1, n, m)
    for index in doubtful.reshape(-1).nonzero().flatten().tolist():
        found[index] = not has_plan(problems[index])
    return found.reshape(doubtful.shape)
