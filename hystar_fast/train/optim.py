"""Parameter groups for the optimiser, each with its learning rate, and the schedules of the rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

SCHEDULES = ("cosine", "constant")


def parameter_groups(
    parameters: Mapping[str, list[nn.Parameter]], learning_rates: Mapping[str, float], weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return groups for a torch optimiser, each with its learning rate; biases and offsets have no weight decay.

    Args:
        parameters: group -> parameters, from `Method.parameter_groups`.
        learning_rates: group -> peak learning rate; exactly the groups of `parameters`.
        weight_decay: for matrices; parameters of one dimension (biases, singular-value offsets) never decay.

    Raises:
        ValueError: the names of the two do not match, or a rate is not positive.
    """
    if set(parameters) != set(learning_rates):
        raise ValueError(
            f"learning_rates must have exactly the groups {sorted(parameters)}, got {sorted(learning_rates)}"
        )
    groups: list[dict[str, Any]] = []
    for name, members in parameters.items():
        rate = learning_rates[name]
        if not (rate > 0 and math.isfinite(rate)):
            raise ValueError(f"learning_rates[{name!r}] must be positive and finite, got {rate}")
        for decays in (True, False):
            chosen = [p for p in members if p.requires_grad and (p.ndim > 1) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "peak_lr": rate, "weight_decay": decay, "name": name})
    return groups


def rate_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at a step, from 0: "constant" stays at the peak after its linear warm-up."""
    if schedule == "cosine":
        return cosine_factor(step, steps, warmup)
    return min(1.0, (step + 1) / max(1, warmup))


def cosine_factor(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at a step, from 0: linear warm-up, then a half cosine towards zero.

    Example:
        >>> [round(cosine_factor(s, 10, 2), 2) for s in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def clip_gradients(parameters: Sequence[Tensor], largest: float, about: str) -> float:
    """Scale the gradients down to a norm of `largest` (0 does not) and return their norm before.

    Raises:
        FloatingPointError: the norm is not finite; the message is ``the gradient of <about>``.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, largest or math.inf))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient of {about} is not finite, its norm is {norm}: lower its learning rates")
    return norm


def check_loss(loss: float, about: str, step: int) -> None:
    """Raise a FloatingPointError unless a loss is finite; the message is ``the <about> is … at step …``."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the {about} is {loss} at step {step}: lower its learning rates")


def set_rates(optimizer: optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to `factor` times its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
