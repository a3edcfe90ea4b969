"""AdaptFormer: a bottleneck branch beside the MLP of every block."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.backbones.tower import TowerBackbone

# AdaptFormer's own is 64; Table 5 of Hystar's paper (0.5 % more parameters on ViT-L/14) allows 39 to 47.
BOTTLENECK = 40
SCALE = 0.1


class AdaptMLP(nn.Module):
    """MLP(x) + s · up(ReLU(down(x))); `up` is zero at first.

    Args:
        mlp: of the block.
        width: of its input and output.
        bottleneck: width of the branch.
    """

    def __init__(self, mlp: nn.Module, width: int, bottleneck: int) -> None:
        super().__init__()
        self.mlp = mlp
        weight = next(mlp.parameters())
        self.down = nn.Linear(width, bottleneck, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(bottleneck, width, device=weight.device, dtype=weight.dtype)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    @property
    def c_fc(self) -> nn.Module:
        """The first linear layer, where open_clip reads the dtype of a block."""
        return self.mlp.get_submodule("c_fc")

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + SCALE * self.up(F.relu(self.down(x)))


class AdaptFormer(Adapted):
    """x_l = MLP(LN(x'_l)) + s · ReLU(LN(x'_l) W_down) W_up + x'_l, with W_down and W_up trained in every block.

    It starts as the frozen model. On ViT-L/14 a bottleneck of 40 is 1,991,616 parameters.

    Args:
        backbone: the backbone to adapt; it is changed in place.
        criterion: loss of (query, target).
        bottleneck: the width between W_down and W_up.

    Raises:
        ValueError: `bottleneck` is not positive.

    Source: Chen et al., AdaptFormer (NeurIPS 2022), the equations of AdaptMLP in Section 3.2; s = 0.1.
    """

    name = "adaptformer"

    def __init__(
        self, backbone: TowerBackbone, criterion: Callable[[Tensor, Tensor], Tensor], *, bottleneck: int = BOTTLENECK
    ) -> None:
        super().__init__(backbone, criterion)
        if bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, got {bottleneck}")
        self.settings = {"bottleneck": bottleneck}
        for block in backbone.blocks:
            block.mlp = AdaptMLP(block.get_submodule("mlp"), backbone.width, bottleneck)
