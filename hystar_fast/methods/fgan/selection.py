"""Choose regions in training: the perturbed top-K by the settings, and the estimates of its gradient that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.regions import Selector, hard_top_k
from hystar_fast.ops.perturbed_topk.api import perturbed_topk
from hystar_fast.ref.perturbed_topk import (
    check_arguments,
    chosen_positions,
    forbidden_positions,
    invalid_items,
    normal_noise,
    perturbed_scores,
)


def training_selector(config: FGANConfig, generator: torch.Generator | None = None) -> Selector:
    """Return what chooses regions in training (Eq. 6-8).

    Args:
        config: `jacobian`, `control_variate`, `sigma` and `samples` decide.
        generator: of the noise, on the device of the scores; each call draws from it.
    """
    sigma, samples = config.sigma, config.samples
    if config.jacobian == "full" and config.control_variate:

        def select(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
            return perturbed_topk(scores, k, sigma=sigma, samples=samples, generator=generator, mask=mask)

        return select

    def estimate(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
        return estimated_topk(
            scores, k, mask, sigma=sigma, samples=samples, generator=generator, jacobian=config.jacobian
        )

    return estimate


def evaluation_selector(config: FGANConfig, seed: int = 0) -> Selector:
    """Return what chooses regions in evaluation: the K largest, or with noise that is the same at every call."""
    if not config.perturb_at_evaluation:
        return hard_top_k

    def select(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
        generator = torch.Generator(scores.device).manual_seed(seed)
        return perturbed_topk(scores, k, sigma=config.sigma, samples=config.samples, generator=generator, mask=mask)

    return select


def estimated_topk(
    scores: Tensor,
    k: int,
    mask: Tensor | None = None,
    *,
    sigma: float,
    samples: int,
    generator: torch.Generator | None = None,
    jacobian: str = "full",
) -> Tensor:
    """Return what `perturbed_topk` does, with another estimate of its gradient.

    With G [B, K, N] the gradient of the result, Y_s the one-hot rows of sample s and Z_s its noise:
    "full" is ``1/(S sigma) sum_s <G, Y_s> Z_s`` (Eq. 8 without a control variate); "diagonal" is
    ``1/(S sigma) sum_s sum_k G_kj Y_skj Z_sj``, as the authors' code computes it: of the derivative of each entry, the
    part of its own score alone.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """
    check_arguments(scores, k, sigma, samples, generator, mask)
    if jacobian not in ("full", "diagonal"):
        raise ValueError(f"jacobian must be 'full' or 'diagonal', got {jacobian!r}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    forbidden = forbidden_positions(scores, mask)
    noise = normal_noise(scores, samples, generator).to(scores.dtype)
    soft: Tensor = _Estimated.apply(scores, noise, forbidden, k, sigma, jacobian)
    return soft


class _Estimated(torch.autograd.Function):
    """The mean over samples; positions of the chosen entries [B, S, K] are kept, and N where fewer may be chosen."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, noise: Tensor, forbidden: Tensor, k: int, sigma: float, jacobian: str
    ) -> Tensor:
        invalid = invalid_items(scores, forbidden)
        closed = forbidden | invalid
        chosen = chosen_positions(perturbed_scores(scores, noise, closed, sigma), k)
        ctx.save_for_backward(chosen, noise.masked_fill(closed.unsqueeze(1), 0))
        ctx.sigma, ctx.jacobian = sigma, jacobian
        soft = _summed(chosen, torch.ones_like(noise[..., :1]).expand(chosen.shape), scores.shape[1], k)
        return (soft / noise.shape[1]).masked_fill(invalid.unsqueeze(-1), torch.nan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dsoft: Tensor) -> tuple[Tensor | None, ...]:
        chosen, noise = ctx.saved_tensors
        (_, S, N), K = noise.shape, chosen.shape[-1]
        if ctx.jacobian == "diagonal":
            own = torch.nn.functional.pad(noise, (0, 1)).gather(2, chosen)
            moments = _summed(chosen, own, N, dsoft.shape[1])
            found = (dsoft * moments).sum(1)
        else:
            rows = torch.nn.functional.pad(dsoft[:, :K], (0, 1))
            weights = rows.gather(2, chosen.mT).sum(1)  # [B, S]
            found = (weights.unsqueeze(1) @ noise).squeeze(1)
        return found / (S * ctx.sigma), None, None, None, None, None


def _summed(chosen: Tensor, values: Tensor, n: int, k: int) -> Tensor:
    """Add values [B, S, K] at their chosen positions, as [B, k, n]."""
    B, _, K = chosen.shape
    found = values.new_zeros(B, k, n + 1)
    found[:, :K].scatter_add_(2, chosen.mT, values.mT.contiguous())
    return found[..., :n]
