"""Hypernetwork: offsets of singular values from a style embedding."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hystar_fast.nn.views import apply_linear


class Hypernetwork(nn.Module):
    """Map a style embedding to one offset per singular value.

    ``delta_s = W2 relu(W1 z + b1) + b2`` (Eq. 2).

    Args:
        style_dim: width of the style embedding z.
        rank: number of singular values that it modulates.
        hidden: width of the hidden layers; ``None`` means ``2 * rank``, as in the paper.
        depth: number of linear layers (Table 9); 1 is a single affine map without a hidden layer.
        init: initialisation of the last layer. ``"kaiming"``, as for every other layer: the offsets start small beside
            a pretrained spectrum, but not at zero, and the paper's learning rate of 1e-5 suits them. ``"zero"``: the
            modulated model starts exactly at the original; it needs a larger learning rate.

    Shapes: z [..., style_dim] -> delta_s [..., rank].

    Gradients: for z and every parameter.

    Cost: ``style_dim * hidden + (depth - 2) * hidden² + hidden * rank`` multiply-adds for each image;
    3.7 M parameters at 768 -> 2048 -> 1024.

    Raises:
        TypeError, ValueError: a size is not a positive integer, ``init`` is unknown, or z has another width.

    Source: Hystar, Sec. 3.2 and Appendix D.2.

    Example:
        >>> Hypernetwork(768, 1024)(torch.randn(2, 768)).shape
        torch.Size([2, 1024])
    """

    def __init__(
        self,
        style_dim: int,
        rank: int,
        hidden: int | None = None,
        depth: int = 2,
        *,
        init: str = "kaiming",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"style_dim": style_dim, "rank": rank, "depth": depth} | ({} if hidden is None else {"hidden": hidden})
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name} must be an int, got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if init not in ("kaiming", "zero"):
            raise ValueError(f"init must be 'kaiming' or 'zero', got {init!r}")
        self.style_dim, self.rank, self.depth, self.init = style_dim, rank, depth, init
        self.hidden = 2 * rank if hidden is None else hidden
        widths = [style_dim, *[self.hidden] * (depth - 1), rank]
        self.layers = nn.ModuleList(nn.Linear(*pair, device=device, dtype=dtype) for pair in pairwise(widths))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all layers: Kaiming normal weights and zero biases, and the last layer according to ``init``."""
        for name, parameter in self.layers.named_parameters():
            if name.endswith("bias") or (self.init == "zero" and name == f"{self.depth - 1}.weight"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[-1:] != (self.style_dim,):
            raise ValueError(f"z must be [..., {self.style_dim}], got shape {tuple(z.shape)}")
        for layer in self.layers[:-1]:
            z = torch.relu(layer(z))
        return apply_linear(self.layers[-1], z)

    def extra_repr(self) -> str:
        return f"style_dim={self.style_dim}, rank={self.rank}, hidden={self.hidden}, depth={self.depth}"
