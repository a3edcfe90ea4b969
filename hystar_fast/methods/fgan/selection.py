"""Choose regions in training: the perturbed top-K, with the gradient that the settings name."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.regions import Selector, hard_top_k
from hystar_fast.ops.perturbed_topk.ablations import topk_with_diagonal_jacobian, topk_without_control_variate
from hystar_fast.ops.perturbed_topk.api import perturbed_topk


def training_selector(config: FGANConfig, generator: torch.Generator | None = None) -> Selector:
    """Return what chooses regions in training (Eq. 6-8).

    Args:
        config: `jacobian`, `control_variate`, `sigma` and `samples` decide.
        generator: of the noise, on the device of the scores; each call draws from it.
    """
    if config.jacobian == "diagonal":
        choose = topk_with_diagonal_jacobian
    else:
        choose = perturbed_topk if config.control_variate else topk_without_control_variate

    def select(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
        return choose(scores, k, sigma=config.sigma, samples=config.samples, generator=generator, mask=mask)

    return select


def evaluation_selector(config: FGANConfig, seed: int = 0) -> Selector:
    """Return what chooses regions in evaluation: the K largest, or with noise that is the same at every call."""
    if not config.perturb_at_evaluation:
        return hard_top_k

    def select(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
        generator = torch.Generator(scores.device).manual_seed(seed)
        return perturbed_topk(scores, k, sigma=config.sigma, samples=config.samples, generator=generator, mask=mask)

    return select
