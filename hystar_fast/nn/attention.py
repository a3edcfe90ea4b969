"""Self-attention whose packed projection is modulated per sample: a drop-in for nn.MultiheadAttention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.views import apply_linear

_PACKED_NAMES = ("in_proj_", "qkv.")
_SPLIT_NAMES = ("q_proj.", "k_proj.", "v_proj.")
_OUTPUT_NAMES = ("proj.", "projection.")
_SHORT = 128


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(q kᵀ / sqrt(d_head) + mask) v`` of [B, heads, T, d_head]; a boolean mask is True where allowed.

    scaled_dot_product_attention, but for up to 128 tokens on the CPU without a mask: there the backward of its fused
    kernel takes about five times as long as the plain products below, and its own plain fallback twice.
    """
    if mask is not None or q.device.type != "cpu" or q.shape[-2] > _SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v


class SVDAttention(nn.Module):
    """Multi-head self-attention with one SVD over the packed query, key and value weight.

    ``q, k, v = split(u diag(s + delta_s) vh x + b)``, ``y = W_o softmax(q kᵀ / sqrt(d_head) + mask) v + b_o``.

    Build one with :meth:`from_mha` or, from any other self-attention, :meth:`from_linears`; with zero offsets it
    equals the attention it came from. The style is an argument of forward and nothing is remembered between calls,
    so gradient checkpointing recomputes with the same style and threads do not mix theirs.

    Args:
        in_proj: the packed projection, d -> 3 d.
        out_proj: the output projection, d -> d, used as it is.
        num_heads: a divisor of d.

    Shapes: x [B, T, d], batch first whatever the source's layout; delta_s and index as for FastSVDLinear, or None;
        attn_mask by nn.MultiheadAttention's convention, boolean with True at forbidden positions or floating and
        added, [T, T], [B * heads, T, T] or anything that broadcasts to [B, heads, T, T]. Returns [B, T, d].

    Gradients: for x, delta_s, in_proj.delta_s_static, a floating attn_mask and whatever of out_proj is trainable.

    Cost: the projections as FastSVDLinear says; attention by scaled_dot_product_attention, so no T x T matrix is kept
        where a fused kernel exists, but for the short sequences :func:`attend` names.

    Raises:
        TypeError, ValueError: naming the argument, what it needs and what came.

    Source: Hystar, Sec. 3.2: the packed in_proj is modulated, out_proj is not.

    Example:
        >>> attention = SVDAttention.from_mha(nn.MultiheadAttention(8, 2, batch_first=True))
        >>> attention(torch.randn(3, 5, 8), torch.randn(3, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, in_proj: FastSVDLinear, out_proj: nn.Linear, num_heads: int) -> None:
        super().__init__()
        width = in_proj.in_features
        if in_proj.out_features != 3 * width:
            raise ValueError(f"in_proj must map d to 3 d, got {width} to {in_proj.out_features}")
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads must divide the width {width}, got {num_heads}")
        self.in_proj, self.out_proj, self.num_heads = in_proj, out_proj, num_heads

    @classmethod
    def from_mha(
        cls, mha: nn.MultiheadAttention, rank: int | None = None, *, cache_dir: str | Path | None = None
    ) -> SVDAttention:
        """Factor the packed projection of ``mha`` and keep its ``out_proj`` module; ``mha`` itself is left as it is."""
        if not isinstance(mha, nn.MultiheadAttention):
            raise TypeError(f"mha must be an nn.MultiheadAttention, got {type(mha).__name__}")
        if mha.in_proj_weight is None:
            raise ValueError(
                f"mha must have kdim = vdim = embed_dim = {mha.embed_dim} (self-attention), "
                f"got kdim {mha.kdim} and vdim {mha.vdim}"
            )
        if mha.bias_k is not None or mha.bias_v is not None or mha.add_zero_attn:
            raise ValueError("mha must have add_bias_kv=False and add_zero_attn=False; neither is supported")
        if mha.dropout:
            raise ValueError(f"mha must have dropout=0, since attention dropout is not supported, got {mha.dropout}")
        packed = nn.Linear(mha.embed_dim, 3 * mha.embed_dim, mha.in_proj_bias is not None, device="meta")
        packed.weight, packed.bias = mha.in_proj_weight, mha.in_proj_bias
        return cls.from_linears([packed], mha.out_proj, mha.num_heads, rank, cache_dir=cache_dir).train(mha.training)

    @classmethod
    def from_linears(
        cls,
        projections: Sequence[nn.Linear],
        out_proj: nn.Linear,
        num_heads: int,
        rank: int | None = None,
        *,
        cache_dir: str | Path | None = None,
    ) -> SVDAttention:
        """Factor ``projections``, one packed layer or query, key and value in this order, and keep ``out_proj`` itself.

        Three layers are stacked to one weight [3 d, d] first, so that one spectrum spans all three.
        """
        if len(projections) not in (1, 3) or not all(isinstance(layer, nn.Linear) for layer in projections):
            kinds = ", ".join(type(layer).__name__ for layer in projections) or "nothing"
            raise TypeError(f"projections must be one packed nn.Linear or three (query, key, value), got {kinds}")
        packed = projections[0] if len(projections) == 1 else _stacked(projections)
        return cls(FastSVDLinear.from_linear(packed, rank, cache_dir=cache_dir), out_proj, num_heads)

    def forward(
        self,
        x: Tensor,
        delta_s: Tensor | None = None,
        *,
        index: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        if x.dim() != 3:
            raise ValueError(f"x must be [B, T, {self.in_proj.in_features}], got shape {tuple(x.shape)}")
        batch, tokens, width = x.shape
        plain = delta_s is None and index is None  # a merged projection takes nothing else
        packed = self.in_proj(x) if plain else self.in_proj(x, delta_s, index=index)
        q, k, v = packed.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, self._allowed(attn_mask, q))
        return apply_linear(self.out_proj, mixed.transpose(1, 2).reshape(batch, tokens, width))

    def _allowed(self, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """The mask by scaled_dot_product_attention's convention, where True means allowed."""
        if mask is None:
            return None
        batch, heads, tokens, _ = q.shape
        if mask.dim() == 3 and mask.shape[0] == batch * heads:
            mask = mask.reshape(batch, heads, tokens, tokens)
        fits = zip(reversed(mask.shape), (tokens, tokens, heads, batch), strict=False)
        if mask.dim() > 4 or any(got not in (1, size) for got, size in fits):
            square = f"{tokens}, {tokens}]"
            needs = f"[{square}, [{batch * heads}, {square} or [{batch}, {heads}, {square}"
            raise ValueError(f"attn_mask must be {needs}, got shape {tuple(mask.shape)}")
        if mask.dtype == torch.bool:
            return mask.logical_not()
        if not mask.is_floating_point():
            raise TypeError(f"attn_mask must be boolean or floating, got {mask.dtype}")
        return mask.to(q.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept the source's keys, packed or split: this runs before the children load, so renaming suffices."""
        for name in ("weight", "bias"):
            for source in _PACKED_NAMES:
                _rename(state_dict, prefix + source + name, prefix + "in_proj." + name)
            for source in _OUTPUT_NAMES:
                _rename(state_dict, prefix + source + name, prefix + "out_proj." + name)
            split = [prefix + source + name for source in _SPLIT_NAMES]
            if all(key in state_dict for key in split):
                state_dict[prefix + "in_proj." + name] = torch.cat([state_dict.pop(key) for key in split])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


def _stacked(projections: Sequence[nn.Linear]) -> nn.Linear:
    """One layer whose output is that of all `projections` side by side; a missing bias is zero."""
    packed = nn.Linear(projections[0].in_features, sum(layer.out_features for layer in projections), device="meta")
    packed.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in projections]), requires_grad=False)
    biases: list[Tensor] = [
        layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in projections
    ]
    has_bias = any(layer.bias is not None for layer in projections)
    bias = nn.Parameter(torch.cat(biases).detach(), requires_grad=False) if has_bias else None
    packed.register_parameter("bias", bias)
    return packed.train(projections[0].training)


def _rename(state_dict: dict[str, Any], old: str, new: str) -> None:
    if old in state_dict:
        state_dict[new] = state_dict.pop(old)
