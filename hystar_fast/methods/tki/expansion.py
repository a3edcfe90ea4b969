"""Losses of TKI's first stage: styles far apart, classes kept (Section 4.1, Eq. 1 to 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def diversity_loss(domains: Tensor, alpha: float, mu: float) -> Tensor:
    """Return L_max, which drives the cosines of styles below mu: mean over p != q of softplus(alpha (cos_pq - mu)).

    Args:
        domains: unit vectors [P, D] of the domain prompts, P at least 2.
        alpha: slope, above 0.
        mu: margin.

    Source: Yan et al. 2024, Eq. 1 and 2; the softplus does not overflow where the printed logarithm does.

    >>> diversity_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), alpha=10, mu=0.0).round(decimals=4)
    tensor(0.6931)
    """
    return F.softplus(alpha * (off_diagonal(domains @ domains.mT) - mu)).mean()


def category_loss(styled: Tensor, prototypes: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Return L_min, the mean cross-entropy of styled classes over the prototypes of all classes.

    Args:
        styled: unit vectors [P, I, D].
        prototypes: unit vectors [C, D] of the class prompts.
        labels: int64 [I], the class of each column of `styled`.
        tau: temperature.

    Source: Yan et al. 2024, Eq. 3 and 4.

    >>> unit = torch.eye(3)
    >>> category_loss(unit[None], unit, torch.arange(3), 1.0).round(decimals=4)  # log(1 + 2 / e)
    tensor(0.5514)
    """
    scores = styled @ prototypes.mT / tau
    return F.cross_entropy(scores.flatten(0, 1), labels.repeat(len(styled)))


def off_diagonal(square: Tensor) -> Tensor:
    """Return the entries [n (n - 1)] of a matrix [n, n] off its diagonal."""
    return square[~torch.eye(len(square), dtype=torch.bool, device=square.device)]
