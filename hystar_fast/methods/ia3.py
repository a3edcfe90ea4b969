"""(IA)³: three vectors a block that rescale keys, values and the inner activations of the MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.backbones.open_clip import OpenClipBackbone


class _KeyValueScale(nn.Module):
    """The packed q, k, v weight or bias with its rows of k and v rescaled."""

    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        width = packed.shape[0] // 3
        self.keys = nn.Parameter(packed.new_ones(width))
        self.values = nn.Parameter(packed.new_ones(width))

    def forward(self, packed: Tensor) -> Tensor:
        scale = torch.cat([torch.ones_like(self.keys), self.keys, self.values])
        return packed * (scale if packed.ndim == 1 else scale[:, None])


class _InputScale(nn.Module):
    """A weight whose inputs are rescaled."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(weight.new_ones(weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class IA3(Adapted):
    """softmax(Q (l_k ⊙ K)ᵀ / √d) (l_v ⊙ V) and W_2 (l_ff ⊙ act(W_1 x)), with l_k, l_v, l_ff trained in every block.

    It starts as the frozen model (all ones). As each vector stands beside a linear map it is folded into the weight,
    so a trained one costs nothing. On ViT-L/14 it has 147,456 parameters.

    Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
    (NeurIPS 2022), the equations of Section 3.3.
    """

    name = "ia3"
    open_clip_only = True

    def __init__(self, backbone: OpenClipBackbone, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(backbone, criterion)
        for block in backbone.blocks:
            attention: Any = block.get_submodule("attn")
            projection: Any = block.get_submodule("mlp.c_proj")
            scale = _KeyValueScale(attention.in_proj_weight)
            for name in ("in_proj_weight", "in_proj_bias"):
                if getattr(attention, name) is not None:
                    parametrize.register_parametrization(attention, name, scale)
            parametrize.register_parametrization(projection, "weight", _InputScale(projection.weight))
