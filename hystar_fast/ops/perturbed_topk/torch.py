"""The perturbed top-K in torch, on any device: positions instead of one-hot rows, and gathers instead of products."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ref.perturbed_topk import chosen_positions, invalid_items, perturbed_scores


def forward(
    scores: Tensor, noise: Tensor, forbidden: Tensor, k: int, sigma: float, keep: bool
) -> tuple[Tensor, Tensor]:
    """Return soft [B, K, N] and the chosen positions [B, S, min(K, N)], N where none is left; empty without `keep`."""
    invalid = invalid_items(scores, forbidden)
    chosen = chosen_positions(perturbed_scores(scores, noise.to(scores.dtype), forbidden | invalid, sigma), k)
    soft = mean_of_chosen(chosen, scores.new_ones(()).expand(chosen.shape), k, scores.shape[1], invalid)
    return soft, chosen.int() if keep else chosen.new_empty(0, dtype=torch.int32)


def mean_of_chosen(chosen: Tensor, weight: Tensor, k: int, n: int, invalid: Tensor) -> Tensor:
    """Return the mean over the samples of the one-hot rows of the positions, each with a weight, [B, K, N].

    The rows of invalid items are NaN.
    """
    b, samples, kept = chosen.shape
    index = chosen + torch.arange(kept, device=chosen.device) * (n + 1)
    total = weight.new_zeros(b, k * (n + 1)).scatter_add(1, index.flatten(1), weight.flatten(1))
    soft = total.view(b, k, n + 1)[..., :n] / samples
    return soft.masked_fill(invalid.unsqueeze(-1), math.nan)


def backward(dsoft: Tensor, chosen: Tensor, noise: Tensor, forbidden: Tensor, sigma: float) -> Tensor:
    """Return the gradient of the scores: the covariance, over the samples, of the noise and the gradient they chose.

    It is projected on a sum of 0, because adding a number to all scores changes nothing.
    """
    samples = noise.shape[1]
    dsoft = pad(dsoft[:, : chosen.shape[-1]], (0, 1))  # 0 for a position that is none
    weight = dsoft.mT.gather(1, chosen.long()).sum(-1)
    weight = weight - weight[:, :1]  # exactly 0 if all samples chose the same
    weight = weight - weight.mean(1, keepdim=True)
    with without_autocast(dsoft.device.type):
        dscores = (weight.unsqueeze(1) @ noise.to(weight.dtype)).squeeze(1) / ((samples - 1) * sigma)
    dscores = dscores.masked_fill(forbidden, 0)
    mean = dscores.sum(1, keepdim=True) / (~forbidden).sum(1, keepdim=True).clamp_min(1)
    return (dscores - mean).masked_fill(forbidden, 0)
