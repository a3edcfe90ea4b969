"""LoRA on the image tower of a CLIP, with about as many parameters as another adapter.

It uses torch's parametrizations and not peft, whose LoRA of nn.MultiheadAttention adds the update of the output
projection twice (peft 0.21, huggingface/peft#3774) and would make the baseline worse than it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.backbones.tower import TowerBackbone


class LowRank(nn.Module):
    """W -> W + b a, with b [out, rank] zero at first (Hu et al., 2022)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


class LoRA(Adapted):
    """Low-rank updates of every attention and MLP matrix of an image tower's blocks; the rest is frozen.

    It starts as the frozen model.

    Args:
        backbone: the backbone to adapt; it is changed in place.
        criterion: loss of (query, target).
        parameters: how many parameters to train; the rank with the closest number is used.
        rank: the rank itself, instead of `parameters`.

    Raises:
        ValueError: `parameters` and `rank` are both given or both missing, or one of them is not positive.
    """

    name = "lora"

    def __init__(
        self,
        backbone: TowerBackbone,
        criterion: Callable[[Tensor, Tensor], Tensor],
        *,
        parameters: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(backbone, criterion)
        if (parameters is None) == (rank is None):
            raise ValueError(f"parameters or rank must be given, not both, got parameters={parameters}, rank={rank}")
        for name, value in (("parameters", parameters), ("rank", rank)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        matrices = _matrices(backbone)
        per_rank = sum(sum(getattr(module, name).shape) for module, name in matrices)
        self.rank: int = max(1, round(parameters / per_rank)) if parameters is not None else rank or 1
        self.settings = {"rank": self.rank}
        self._trained: list[nn.Parameter] = []
        for module, name in matrices:
            update = LowRank(getattr(module, name), self.rank)
            parametrize.register_parametrization(module, name, update)
            self._trained += [update.a, update.b]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {self.name: self._trained}


def _matrices(backbone: TowerBackbone) -> list[tuple[nn.Module, str]]:
    """List every attention and MLP matrix of the visual blocks as (module, attribute)."""
    found: list[tuple[nn.Module, str]] = []
    for module in (module for block in backbone.blocks for module in block.modules()):
        if isinstance(module, nn.Linear):
            found.append((module, "weight"))
        elif isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):  # packed query, key and value
            found.append((module, "in_proj_weight"))
    return found
