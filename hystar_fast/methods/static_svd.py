"""Static spectral fine-tuning: one trained offset for each singular value of every matrix of every block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.nn.inject import inject


class StaticSVD(Adapted):
    """W = U (Σ + M) Vᵀ with M diagonal and trained, for the packed qkv, the output projection and both MLP matrices.

    This is SVFT's plain variant: Hystar's static offsets in every matrix instead of in the MLPs only (`StaticOnly`).
    It starts as the frozen model. On ViT-L/14 it has 98,304 parameters.

    Source: Lingam et al., SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors (NeurIPS 2024), Section 3, the
    variant SVFT^P.
    """

    name = "svft"

    def __init__(self, backbone: TowerBackbone, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(backbone, criterion)
        for number in range(1, backbone.depth + 1):
            backbone.inject_static(number, None)
            backbone.inject_static_attention(number, None)
            inject(backbone.blocks[number - 1].get_submodule(backbone.tower.attention_at), "out_proj")
