"""The reference of the perturbed top-K: the dense form, with one-hot rows [B, S, K, N] of every sample of the noise.

The result is the mean of these rows. Its derivatives are those of the same mean with weights that are 1 at the scores
themselves: the density of the noise that would give the same perturbed scores, divided by that of the noise drawn,

    w_s(d) = exp(<Z_s, d> - |d|^2 / 2),    d = (change of the scores) / sigma, projected on a sum of 0.

So autograd and torch.func give unbiased estimates of the derivatives of every order.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.nn.functional import pad

from hystar_fast.ref.dense import check_dense, check_floating


def check_arguments(
    scores: Tensor, k: int, sigma: float, samples: int, generator: torch.Generator | None, mask: Tensor | None
) -> None:
    """Raise TypeError or ValueError for the first invalid argument."""
    check_floating("scores", scores)
    if scores.dim() != 2:
        raise ValueError(f"scores must have shape [B, N], got {list(scores.shape)}")
    for name, count, least in (("k", k, 1), ("samples", samples, 2)):
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"{name} must be an int, got {type(count).__name__}")
        if count < least:
            raise ValueError(f"{name} must be at least {least}, got {count}")
    if isinstance(sigma, bool) or not isinstance(sigma, Real):
        raise TypeError(f"sigma must be a number, got {type(sigma).__name__}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        if generator.device.type != scores.device.type:
            raise ValueError(f"generator must be on the device of scores, {scores.device}, got {generator.device}")
    if mask is not None:
        _check_mask(scores, mask)


def _check_mask(scores: Tensor, mask: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool (True forbids), got {mask.dtype}")
    check_dense("mask", mask)
    if mask.device != scores.device:
        raise ValueError(f"mask must be on the device of scores, {scores.device}, got {mask.device}")
    shape, needed = mask.shape, scores.shape
    pairs = zip(reversed(shape), reversed(needed), strict=False)
    if len(shape) > 2 or any(got not in (1, want) for got, want in pairs):
        raise ValueError(f"mask must have a shape that broadcasts to that of scores, {list(needed)}, got {list(shape)}")


def normal_noise(scores: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """Draw the noise [B, S, N] of torch.randn: standard normal, in float32 for scores of any dtype."""
    b, n = scores.shape
    # torch.randn itself takes no symbolic sizes beside a generator
    return torch.empty(b, samples, n, device=scores.device, dtype=torch.float32).normal_(generator=generator)


def forbidden_positions(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return True [B, N] for the positions that may not be chosen: masked, or with a score of -inf."""
    return scores.isneginf() if mask is None else scores.isneginf() | mask


def invalid_items(scores: Tensor, forbidden: Tensor) -> Tensor:
    """Return True [B, 1] for the items of the batch with a score that may be chosen and is NaN or +inf."""
    return ((scores.isnan() | scores.isposinf()) & ~forbidden).any(1, keepdim=True)


def perturbed_scores(scores: Tensor, noise: Tensor, closed: Tensor, sigma: float) -> Tensor:
    """Return scores + sigma * noise [B, S, N], with -inf for closed positions and for no other."""
    held = scores.masked_fill(closed, 0).unsqueeze(1) + sigma * noise
    return held.clamp_min(torch.finfo(held.dtype).min).masked_fill(closed.unsqueeze(1), -math.inf)


def chosen_positions(perturbed: Tensor, k: int) -> Tensor:
    """Return the positions [B, S, min(K, N)] of the k largest entries in ascending order, N where -inf is left.

    Of equal entries, the first is chosen.
    """
    n = perturbed.shape[-1]
    order = perturbed.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.where(perturbed.gather(-1, order).isneginf(), n, order).sort(-1).values


def perturbed_topk(
    scores: Tensor,
    k: int,
    *,
    sigma: float,
    samples: int,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute `hystar_fast.perturbed_topk` in plain torch, in the dense form."""
    check_arguments(scores, k, sigma, samples, generator, mask)
    return soft_topk(scores, normal_noise(scores, samples, generator), k, sigma, mask)


def soft_topk(scores: Tensor, noise: Tensor, k: int, sigma: float, mask: Tensor | None = None) -> Tensor:
    """Return the mean of the top-K of every sample of the given noise [B, S, N]."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    noise = noise.to(scores.dtype)
    samples, n = noise.shape[1:]
    forbidden = forbidden_positions(scores, mask)
    invalid = invalid_items(scores, forbidden)
    closed = forbidden | invalid
    positions = chosen_positions(perturbed_scores(scores.detach(), noise, closed, sigma), k)
    hard = (positions.unsqueeze(-1) == torch.arange(n, device=scores.device)).to(scores.dtype)
    hard = pad(hard, (0, 0, 0, k - positions.shape[-1]))  # [B, S, K, N]

    change = ((scores - scores.detach()) / sigma).masked_fill(closed, 0)
    change = change - change.sum(1, keepdim=True) / (~closed).sum(1, keepdim=True).clamp_min(1)
    change = change.masked_fill(closed, 0).unsqueeze(1)
    weight = ((noise * change).sum(-1) - change.square().sum(-1) / 2).exp()
    others = (hard.sum(1, keepdim=True) - hard) / (samples - 1)  # a baseline that does not depend on the sample's noise
    soft = (hard + (hard - others) * (weight - 1)[..., None, None]).sum(1) / samples
    return soft.masked_fill(invalid.unsqueeze(-1), math.nan)
