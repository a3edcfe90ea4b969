"""Checks of the arguments of style_nce."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
import torch.distributed as dist
from torch import Tensor

from hystar_fast.ref.dense import check_dense, check_floating
from hystar_fast.ref.style_nce import WEIGHTS

PLAN_GRADS = ("none", "unroll", "implicit")
REDUCTIONS = ("mean", "none")


def is_group(group: object) -> bool:
    """Return whether this is a group of processes."""
    return dist.is_available() and isinstance(group, dist.ProcessGroup)


def check_inputs(query: Tensor, target: Tensor, mask: Tensor | None, group: object) -> None:
    """Raise TypeError or ValueError if a tensor has a wrong type, dtype, shape or device, or the group a wrong type.

    With a group, the columns of the mask are checked where the number of all rows is known.
    """
    if group is not None and not is_group(group):
        raise TypeError(f"group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}")
    for name, tensor in (("query", query), ("target", target)):
        check_floating(name, tensor)
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
    check_dense("mask", mask)
    n = query.shape[0]
    if group is not None and (mask.dim() != 2 or len(mask) != n):
        raise ValueError(f"mask must have shape [N_p, N] with N_p = {n}, got {list(mask.shape)}")
    if group is None and mask.shape != (n, n):
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
    """Raise TypeError or ValueError if an option has a wrong type or value."""
    if isinstance(gamma, str) and gamma != "auto":
        raise ValueError(f"gamma must be a positive number or 'auto', got {gamma!r}")
    numbers = {"temperature": temperature, "gamma": gamma, "lam": lam, "epsilon": epsilon}
    for name, number in numbers.items():
        if isinstance(number, str) and name == "gamma":
            continue
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {number}")
    if isinstance(n_iter, bool) or not isinstance(n_iter, Integral):
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
