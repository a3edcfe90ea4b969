"""SSF: a scale and a shift of the features after every operation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hystar_fast.methods.adapted import Adapted, OutputScale
from hystar_fast.models.backbones.tower import Affine, TowerBackbone


class _ScaledAndShifted(nn.Module):
    """Scales a bias [out] as its weight, and shifts it."""

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale
        self.shift = nn.Parameter(scale.new_zeros(scale.shape))

    def forward(self, bias: Tensor) -> Tensor:
        return bias * self.scale + self.shift


class SSF(Adapted):
    """y = γ ⊙ x + β after the patch embedding and every layer norm and linear map of the image tower.

    A pooling head and the projection into the text space are excluded.

    Each operation is affine in its weight and bias, so γ and β are folded into them, as the paper does for inference.
    It starts as the frozen model: γ is one and β zero (the public code adds noise with a deviation of 0.02). On
    ViT-L/14 it has 546,816 parameters.

    Source: Lian et al., Scaling & Shifting Your Features (NeurIPS 2022), Section 3.2.
    """

    name = "ssf"

    def __init__(self, backbone: TowerBackbone, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(backbone, criterion)
        tower = backbone.tower
        around = tower.around_blocks(backbone.visual)
        places = [Affine(module) for module in around if not isinstance(module, nn.Identity)]
        for block in backbone.blocks:
            attention = block.get_submodule(tower.attention_at)
            maps = [Affine(module) for module in block.modules() if isinstance(module, (nn.LayerNorm, nn.Linear))]
            places += dict.fromkeys([*tower.projections(attention), *maps])
        for place in places:
            _scale_and_shift(place)


def _scale_and_shift(place: Affine) -> None:
    module, weight, bias = place
    value: Tensor = getattr(module, weight)
    scale = nn.Parameter(value.new_ones(value.shape[0]))
    parametrize.register_parametrization(module, weight, OutputScale(scale))
    if getattr(module, bias, None) is None:
        setattr(module, bias, nn.Parameter(value.new_zeros(value.shape[0])))
    else:
        parametrize.register_parametrization(module, bias, _ScaledAndShifted(scale))
