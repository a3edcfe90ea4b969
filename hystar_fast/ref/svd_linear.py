"""The op svd_linear in plain torch: differentiable in every input, on any device, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def svd_linear(
    x: Tensor, u: Tensor, scale: Tensor, vh: Tensor, bias: Tensor | None = None, *, index: Tensor | None = None
) -> Tensor:
    """Compute ``y[b, t] = u @ (scale[b] * (vh @ x[b, t])) + bias``, as :func:`hystar_fast.svd_linear` does.

    Two differences from the op: ``u`` and ``vh`` also receive a gradient, and inputs are not checked. The product with
    ``scale`` is computed in the wider of both precisions, so a float32 scale stays float32 if x is half.
    """
    if index is not None:
        scale = scale[index]
    if scale.dim() == 2:
        scale = scale.reshape(scale.shape[0], *[1] * (x.dim() - 2), scale.shape[1])
    h = torch.matmul(x, vh.transpose(0, 1))
    y = torch.matmul((h * scale).to(x.dtype), u.transpose(0, 1))
    return y if bias is None else y + bias
