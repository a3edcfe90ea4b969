"""Checks of the arguments of svd_linear."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ref.dense import check_floating


def check_inputs(x: Tensor, u: Tensor, scale: Tensor, vh: Tensor, bias: Tensor | None, index: Tensor | None) -> None:
    """Raise TypeError or ValueError if a tensor has a wrong type, dtype, shape or device."""
    tensors = {"x": x, "u": u, "scale": scale, "vh": vh}
    if bias is not None:
        tensors["bias"] = bias
    for name, tensor in tensors.items():
        check_floating(name, tensor)
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
    if u.dim() != 2 or vh.dim() != 2 or u.shape[1] != vh.shape[0]:
        raise ValueError(f"u and vh must have shapes [out, r] and [r, in], got {list(u.shape)} and {list(vh.shape)}")
    if x.dim() < 1 or x.shape[-1] != vh.shape[1]:
        raise ValueError(f"x must have {vh.shape[1]} features, the columns of vh, got shape {list(x.shape)}")
    if bias is not None and bias.shape != u.shape[:1]:
        raise ValueError(f"bias must have shape [{u.shape[0]}], got {list(bias.shape)}")
    if torch.is_grad_enabled() and (u.requires_grad or vh.requires_grad):
        name = "u" if u.requires_grad else "vh"
        raise ValueError(
            f"{name} must be frozen, as it gets no gradient, got a tensor that requires grad; pass it detached"
        )
    _check_scale(x, scale, vh, index)


def check_same_dtype(x: Tensor, u: Tensor, vh: Tensor, bias: Tensor | None) -> None:
    """Raise TypeError if a tensor has not the dtype of x."""
    for name, tensor in (("u", u), ("vh", vh), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")


def check_index_range(index: Tensor | None, scale: Tensor) -> None:
    """Raise ValueError if an index is not a row of scale. This reads the index."""
    if index is not None and index.numel():
        low, high = (int(bound) for bound in index.aminmax())
        if low < 0 or high >= scale.shape[0]:
            raise ValueError(f"index must be in [0, {scale.shape[0]}), the rows of scale, got {low}..{high}")


def _check_scale(x: Tensor, scale: Tensor, vh: Tensor, index: Tensor | None) -> None:
    rank = vh.shape[0]
    if scale.dim() not in (1, 2) or scale.shape[-1] != rank:
        raise ValueError(
            f"scale must have shape [{rank}], [B, {rank}], or [K, {rank}] with index, got {list(scale.shape)}"
        )
    if scale.dim() == 2 and x.dim() < 2:
        raise ValueError(f"x must have shape [B, T, in] or [B, in] if scale has two dimensions, got {list(x.shape)}")
    if index is None:
        if scale.dim() == 2 and scale.shape[0] != x.shape[0]:
            raise ValueError(
                f"scale must have one row for each sample, [{x.shape[0]}, {rank}], got {list(scale.shape)}; "
                "pass index for a bank"
            )
        return
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int32 or int64 Tensor, got {got}")
    if scale.dim() != 2:
        raise ValueError(f"scale must be a bank [K, {rank}] if index is given, got {list(scale.shape)}")
    if scale.shape[0] == 0 and x.shape[0] > 0:
        raise ValueError(f"scale must have at least one row for a batch of {x.shape[0]}, got {list(scale.shape)}")
    if index.shape != x.shape[:1]:
        raise ValueError(f"index must have one entry for each sample, shape [{x.shape[0]}], got {list(index.shape)}")
    if index.device != x.device:
        raise ValueError(f"index must be on the device of x, {x.device}, got {index.device}")
