"""(IA)³: three vectors a block that rescale keys, values and the inner activations of the MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hystar_fast.methods.adapted import Adapted, OutputScale
from hystar_fast.models.backbones.tower import Affine, TowerBackbone


class _KeyValueScale(nn.Module):
    """Scales the rows of k and v in a packed q, k, v weight or bias."""

    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        width = packed.shape[0] // 3
        self.keys = nn.Parameter(packed.new_ones(width))
        self.values = nn.Parameter(packed.new_ones(width))

    def forward(self, packed: Tensor) -> Tensor:
        scale = torch.cat([torch.ones_like(self.keys), self.keys, self.values])
        return packed * (scale if packed.ndim == 1 else scale[:, None])


class _InputScale(nn.Module):
    """Scales the inputs of a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(weight.new_ones(weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class IA3(Adapted):
    """softmax(Q (l_k ⊙ K)ᵀ / √d) (l_v ⊙ V) and W_2 (l_ff ⊙ act(W_1 x)), with l_k, l_v, l_ff trained in every block.

    It starts as the frozen model (all ones). Each vector scales the weight of the linear map beside it, by
    `torch.nn.utils.parametrize`, in every pass. On ViT-L/14 it has 147,456 parameters.

    Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
    (NeurIPS 2022), the equations of Section 3.3.
    """

    name = "ia3"

    def __init__(self, backbone: TowerBackbone, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(backbone, criterion)
        tower = backbone.tower
        for block in backbone.blocks:
            maps = tower.projections(block.get_submodule(tower.attention_at))
            if len(maps) == 1:
                _rescale(maps[0], _KeyValueScale(_weight(maps[0])))
            else:
                for split in maps[1:]:  # keys and values
                    weight = _weight(split)
                    _rescale(split, OutputScale(nn.Parameter(weight.new_ones(weight.shape[0]))))
            parts = [part for _, part in tower.parts_of(block.get_submodule("mlp")) if isinstance(part, nn.Linear)]
            parametrize.register_parametrization(parts[-1], "weight", _InputScale(parts[-1].weight))


def _weight(place: Affine) -> Tensor:
    found: Tensor = getattr(place.module, place.weight)
    return found


def _rescale(place: Affine, scale: nn.Module) -> None:
    for name in (place.weight, place.bias):
        if getattr(place.module, name) is not None:
            parametrize.register_parametrization(place.module, name, scale)
