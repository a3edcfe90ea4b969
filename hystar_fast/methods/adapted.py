"""Base of the parameter-efficient baselines: a frozen backbone with a few trainable parameters in its image tower."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hystar_fast.methods.frozen import Frozen
from hystar_fast.models.backbones.tower import TowerBackbone


class OutputScale(nn.Module):
    """Scales the outputs of a weight [out, …] or a bias [out], for `torch.nn.utils.parametrize`."""

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * self.scale.view(-1, *[1] * (tensor.ndim - 1))


class Adapted(Frozen):
    """A frozen backbone with one group of trainable parameters in its image tower, named as the method.

    Args:
        backbone: the backbone to adapt; it is changed in place.
        criterion: loss of (query, target).
    """

    def __init__(self, backbone: TowerBackbone, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(backbone)
        self.criterion = criterion

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {self.name: [p for module in self.modules for p in module.parameters() if p.requires_grad]}

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        return self.criterion(query, target)
