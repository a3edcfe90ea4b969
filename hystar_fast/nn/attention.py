"""Self-attention whose packed projection is modulated for each sample; it replaces nn.MultiheadAttention."""

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
_SPLIT_NAMES = {
    "weight": [("q_proj.weight", "k_proj.weight", "v_proj.weight")],
    "bias": [("q_proj.bias", "k_proj.bias", "v_proj.bias"), ("q_bias", "k_bias", "v_bias")],
}
_OPTIONAL = ("k_bias",)  # timm does not save it: it is zero
_OUTPUT_NAMES = ("proj.", "projection.")
_SHORT_SEQUENCE = 128  # tokens


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute ``softmax(q kᵀ / sqrt(d_head) + mask) v``.

    This is scaled_dot_product_attention, with one exception: up to 128 tokens on the CPU, without a mask, are computed
    by plain products. There the backward of the fused kernel takes about five times as long, and that of torch's own
    plain implementation twice as long.

    Args:
        q, k, v: [B, heads, T, d_head].
        mask: boolean, True where a query may see a key, or floating and added; None for no mask.
    """
    if mask is not None or q.device.type != "cpu" or q.shape[-2] > _SHORT_SEQUENCE:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v


class SVDAttention(nn.Module):
    """Multi-head self-attention with one SVD over the packed query, key and value weight.

    ``q, k, v = split(u diag(s + delta_s) vh x + b)``, ``y = W_o softmax(q kᵀ / sqrt(d_head) + mask) v + b_o``.

    :meth:`from_mha` builds one from nn.MultiheadAttention, and :meth:`from_linears` from any other self-attention. With
    zero offsets it equals the attention it was built from. The offsets are an argument of forward, and the module
    stores nothing between calls: gradient checkpointing recomputes with the same offsets, and threads do not share
    them.

    Args:
        in_proj: the packed projection, d -> 3 d.
        out_proj: the output projection, d -> d. It is used as it is, not copied.
        num_heads: a divisor of d.

    Shapes: x [B, T, d]: the batch comes first, also where the source had it second. delta_s and index as for
        FastSVDLinear, or None. attn_mask as for nn.MultiheadAttention: boolean and True where a query must not see a
        key, or floating and added; its shape is [T, T], [B * heads, T, T] or any that broadcasts to [B, heads, T, T].
        Returns [B, T, d].

    Gradients: for x, delta_s, in_proj.delta_s_static, a floating attn_mask and the trainable parameters of out_proj.

    Cost: that of FastSVDLinear for the projection, and of scaled_dot_product_attention for the rest. Where a fused
        kernel exists no T x T matrix is stored; :func:`attend` names the exception, short sequences on the CPU.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape; the message says what it must be.

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
        """Factor the packed projection of ``mha`` and share its ``out_proj``; ``mha`` itself does not change."""
        if not isinstance(mha, nn.MultiheadAttention):
            raise TypeError(f"mha must be an nn.MultiheadAttention, got {type(mha).__name__}")
        if mha.in_proj_weight is None:
            raise ValueError(
                f"mha must have kdim = vdim = embed_dim = {mha.embed_dim} (self-attention), "
                f"got kdim {mha.kdim} and vdim {mha.vdim}"
            )
        if mha.bias_k is not None or mha.bias_v is not None or mha.add_zero_attn:
            has_bias_kv = mha.bias_k is not None or mha.bias_v is not None
            raise ValueError(
                "mha must have add_bias_kv=False and add_zero_attn=False, "
                f"got add_bias_kv={has_bias_kv} and add_zero_attn={mha.add_zero_attn}"
            )
        if mha.dropout:
            raise ValueError(f"mha must have dropout=0, as attention dropout is not supported, got {mha.dropout}")
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
        """Factor the projections of any self-attention and share its ``out_proj``.

        Args:
            projections: one packed layer d -> 3 d, or the layers of query, key and value, in this order. Three layers
                are stacked into one weight [3 d, d], so that one spectrum spans all three.
            out_proj: the output projection.
            num_heads: a divisor of d.
            rank: as in FastSVDLinear.
            cache_dir: as in svd_factors.
        """
        if len(projections) not in (1, 3) or not all(isinstance(layer, nn.Linear) for layer in projections):
            kinds = ", ".join(type(layer).__name__ for layer in projections) or "nothing"
            raise TypeError(f"projections must be one packed nn.Linear or three (query, key, value), got {kinds}")
        packed = projections[0] if len(projections) == 1 else _stack(projections)
        return cls(FastSVDLinear.from_linear(packed, rank, cache_dir=cache_dir), out_proj, num_heads)

    def forward(
        self,
        x: Tensor,
        delta_s: Tensor | None = None,
        *,
        index: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.project(x, delta_s, index)
        mixed = attend(q, k, v, self._convert_mask(attn_mask, q))
        return apply_linear(self.out_proj, mixed.transpose(1, 2).reshape(x.shape))

    def project(self, x: Tensor, delta_s: Tensor | None, index: Tensor | None) -> Tensor:
        """Return query, key and value [3, B, heads, T, d_head] of x [B, T, d], with the offsets."""
        if x.dim() != 3:
            raise ValueError(f"x must be [B, T, {self.in_proj.in_features}], got shape {tuple(x.shape)}")
        batch, tokens, width = x.shape
        has_no_offset = delta_s is None and index is None
        packed = self.in_proj(x) if has_no_offset else self.in_proj(x, delta_s, index=index)  # nn.Linear once merged
        return packed.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)

    def _convert_mask(self, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Return the mask as scaled_dot_product_attention takes it: True where a query may see a key."""
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
        """Accept the keys of the module that this one was built from, packed or split.

        They are renamed in `state_dict` before the submodules load.
        """
        for name in ("weight", "bias"):
            for source in _PACKED_NAMES:
                _rename_key(state_dict, prefix + source + name, prefix + "in_proj." + name)
            for source in _OUTPUT_NAMES:
                _rename_key(state_dict, prefix + source + name, prefix + "out_proj." + name)
            for parts in _SPLIT_NAMES[name]:
                if all(part in _OPTIONAL or prefix + part in state_dict for part in parts):
                    found = [state_dict.pop(prefix + part, None) for part in parts]
                    stacked = [torch.zeros_like(found[0]) if part is None else part for part in found]
                    state_dict[prefix + "in_proj." + name] = torch.cat(stacked)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


def _stack(projections: Sequence[nn.Linear]) -> nn.Linear:
    """Return one layer whose output is the outputs of all `projections`, concatenated; a missing bias is zero."""
    packed = nn.Linear(projections[0].in_features, sum(layer.out_features for layer in projections), device="meta")
    packed.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in projections]), requires_grad=False)
    biases: list[Tensor] = [
        layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in projections
    ]
    has_bias = any(layer.bias is not None for layer in projections)
    bias = nn.Parameter(torch.cat(biases).detach(), requires_grad=False) if has_bias else None
    packed.register_parameter("bias", bias)
    return packed.train(projections[0].training)


def _rename_key(state_dict: dict[str, Any], old: str, new: str) -> None:
    if old in state_dict:
        state_dict[new] = state_dict.pop(old)
