"""SSF: a scale and a shift of the features after every operation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.backbones.open_clip import OpenClipBackbone


class _Scaled(nn.Module):
    """A weight [out, …] with its outputs rescaled."""

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale.view(-1, *[1] * (weight.ndim - 1))


class _ScaledAndShifted(nn.Module):
    """A bias [out] rescaled with its weight, and shifted."""

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale
        self.shift = nn.Parameter(scale.new_zeros(scale.shape))

    def forward(self, bias: Tensor) -> Tensor:
        return bias * self.scale + self.shift


class SSF(Adapted):
    """y = γ ⊙ x + β after the patch embedding and every layer norm and linear map of the image tower.

    As each operation is affine in its weight and bias, γ and β are folded into them, as the paper does for
    inference. It starts as the frozen model: γ is one and β zero (the public code draws both with a deviation of 0.02
    around that). On ViT-L/14 it has 546,816 parameters.

    Source: Lian et al., Scaling & Shifting Your Features (NeurIPS 2022), Section 3.2.
    """

    name = "ssf"
    open_clip_only = True

    def __init__(self, backbone: OpenClipBackbone, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(backbone, criterion)
        visual = backbone.visual
        for module in (visual.conv1, visual.ln_pre, visual.ln_post):
            if not isinstance(module, nn.Identity):
                _scale_and_shift(module)
        for block in backbone.blocks:
            _scale_and_shift(block.get_submodule("attn"), "in_proj_weight", "in_proj_bias")
            for name in ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
                _scale_and_shift(block.get_submodule(name))


def _scale_and_shift(module: nn.Module, weight: str = "weight", bias: str = "bias") -> None:
    value: Tensor = getattr(module, weight)
    scale = nn.Parameter(value.new_ones(value.shape[0]))
    parametrize.register_parametrization(module, weight, _Scaled(scale))
    if getattr(module, bias) is None:
        setattr(module, bias, nn.Parameter(value.new_zeros(value.shape[0])))
    else:
        parametrize.register_parametrization(module, bias, _ScaledAndShifted(scale))
