"""Full fine-tuning of the last block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.backbones.tower import TowerBackbone


class LastBlock(Adapted):
    """Trains every parameter of the image tower's last block and nothing else; it starts as the frozen model.

    On ViT-L/14 it has 12,596,224 parameters.
    """

    name = "last_block"

    def __init__(self, backbone: TowerBackbone, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(backbone, criterion)
        backbone.blocks[-1].requires_grad_(True)
