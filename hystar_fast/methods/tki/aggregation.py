"""Loss of TKI's second stage: the styles of a class together, classes apart (Section 4.2, Eq. 6), row by row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.methods.tki.ball_similarity import PoincareSimilarity

POSITIVES = ("inside", "outside")
_ROWS = 512  # of the matrix of scores that are in memory at a time


def aggregation_loss(
    z: Tensor,
    tau: float,
    *,
    similarity: Similarity = COSINE,
    self_in_denominator: bool = True,
    positives: str = "inside",
    rows: int = _ROWS,
) -> Tensor:
    """Return the supervised contrastive loss of classes in several styles.

    L = -1/(PC) Σ_pi log [ Σ_{q≠p} exp(s(z_pi, z_qi) / τ) / Σ_qj exp(s(z_pi, z_qj) / τ) ]   (Eq. 6)

    Its least value, with classes that are one point each, is near `aggregation_floor`.

    Args:
        z: [P, C, D], P at least 2; unit vectors for the cosine.
        tau: temperature.
        similarity: s.
        self_in_denominator: whether (q, j) runs over (p, i) too, as printed.
        positives: "inside" the logarithm, as printed, or "outside": the mean over q of the logarithms.
        rows: of the scores [PC, PC] that are computed at a time; the backward computes them again.

    Cost: 4 (PC)² D multiply-adds with the backward, and `rows` PC numbers of memory.

    Raises:
        ValueError: fewer than two styles, or another word for `positives`.

    Source: Yan et al. 2024, Eq. 6.

    >>> aggregation_loss(torch.ones(2, 3, 1), 0.1).round(decimals=4)  # log(PC / (P - 1))
    tensor(1.7918)
    """
    if positives not in POSITIVES:
        raise ValueError(f"positives must be one of {', '.join(POSITIVES)}, got {positives!r}")
    P, C, _ = z.shape
    if P < 2:
        raise ValueError(f"z must have at least 2 styles, got shape {list(z.shape)}")
    prepared = similarity.prepare(z.flatten(0, 1))
    total = prepared.new_zeros(())
    for start in range(0, P * C, rows):
        arguments: tuple[Any, ...] = (prepared, start, rows, C, tau, similarity, self_in_denominator, positives)
        if torch.is_grad_enabled() and prepared.requires_grad:
            total = total + checkpoint(_sum_of_rows, *arguments, use_reentrant=False)
        else:
            total = total + _sum_of_rows(*arguments)
    return (total / (P * C)).to(z.dtype)


def aggregation_floor(styles: int) -> float:
    """Return log(P / (P - 1)): what the anchor in the denominator of Eq. 6 adds, which no training removes."""
    return math.log(styles / (styles - 1))


def _sum_of_rows(
    prepared: Tensor,
    start: int,
    rows: int,
    classes: int,
    tau: float,
    similarity: Similarity,
    self_in_denominator: bool,
    positives: str,
) -> Tensor:
    """Return the sum of the losses of some anchors."""
    scores = similarity.scores(prepared[start : start + rows], prepared) / tau
    places = torch.arange(len(prepared), device=scores.device)
    anchors = places[start : start + rows, None]
    is_self = anchors == places
    if isinstance(similarity, PoincareSimilarity):
        scores = scores.masked_fill(is_self, 0.0)  # of a point and itself, which rounding would move
    is_positive = (anchors % classes == places % classes) & ~is_self
    everything = scores if self_in_denominator else scores.masked_fill(is_self, -torch.inf)
    if positives == "inside":
        gained = scores.masked_fill(~is_positive, -torch.inf).logsumexp(1)
    else:
        gained = torch.where(is_positive, scores, 0.0).sum(1) / is_positive.sum(1)
    return (everything.logsumexp(1) - gained).sum()
