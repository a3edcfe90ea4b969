"""The perturbed top-K with worse gradients, for ablations: the same values, and first derivatives only.

They are no options of the public function, because nobody but such an ablation should choose them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.perturbed_topk.torch import mean_of_chosen
from hystar_fast.ref.perturbed_topk import (
    check_arguments,
    chosen_positions,
    forbidden_positions,
    invalid_items,
    normal_noise,
    perturbed_scores,
)


def topk_without_control_variate(
    scores: Tensor,
    k: int,
    *,
    sigma: float,
    samples: int,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute `hystar_fast.perturbed_topk` with the gradient E[Y Z'] / sigma as it stands."""
    noise, chosen, change, invalid = _sample(scores, k, sigma, samples, generator, mask)
    with without_autocast(scores.device.type):
        weight = 1 + (noise @ change.unsqueeze(-1)) / sigma
    return mean_of_chosen(chosen, weight.expand(chosen.shape), k, scores.shape[1], invalid)


def topk_with_diagonal_jacobian(
    scores: Tensor,
    k: int,
    *,
    sigma: float,
    samples: int,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute `hystar_fast.perturbed_topk` with dY_kj/dscores_i = 0 for i != j: the gradient of FGAN's public code."""
    noise, chosen, change, invalid = _sample(scores, k, sigma, samples, generator, mask)
    own = pad(noise * change.unsqueeze(1), (0, 1)).gather(-1, chosen)
    return mean_of_chosen(chosen, 1 + own / sigma, k, scores.shape[1], invalid)


def _sample(
    scores: Tensor, k: int, sigma: float, samples: int, generator: torch.Generator | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the noise, the chosen positions, the change of the scores, which is 0, and the invalid items."""
    check_arguments(scores, k, sigma, samples, generator, mask)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    noise = normal_noise(scores, samples, generator).to(scores.dtype)
    forbidden = forbidden_positions(scores, mask)
    invalid = invalid_items(scores, forbidden)
    closed = forbidden | invalid
    chosen = chosen_positions(perturbed_scores(scores.detach(), noise, closed, sigma), k)
    return noise, chosen, (scores - scores.detach()).masked_fill(closed, 0), invalid
