"""Vision transformers of timm with their positions in the attention: EVA, DINOv3 and PE (rotary), BEiT (biases)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hystar_fast.models.backbones.timm import TimmTower
from hystar_fast.models.backbones.tower import Affine
from hystar_fast.nn.attention import SVDAttention, attend
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.views import apply_linear

_PARTS = ("patch_embed", "blocks", "norm", "forward_head")
_BIASES = ("q_bias", "k_bias", "v_bias")


def create_tower(trunk: Any, trunk_at: str, head_at: str) -> TimmTower:
    """Return the tower of a model of timm: that of its kind, or the usual one, which says what it cannot run."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva

    kind = EvaTower if isinstance(trunk, Eva) else BeitTower if isinstance(trunk, Beit) else TimmTower
    return kind(trunk_at, head_at)


class RotaryAttention(SVDAttention):
    """SVDAttention that turns queries and keys by their position, and may normalise them and its output.

    Args:
        source: the EvaAttention or AttentionRope whose norms it shares.
    """

    def __init__(self, in_proj: FastSVDLinear, out_proj: nn.Linear, num_heads: int, source: Any) -> None:
        super().__init__(in_proj, out_proj, num_heads)
        self.q_norm, self.k_norm, self.norm = source.q_norm, source.k_norm, source.norm
        self.prefix_tokens = int(source.num_prefix_tokens)
        self.options = {"half": True} if getattr(source, "rotate_half", False) else {}
        self.are_keys_biased = source.qkv is not None or source.k_proj.bias is not None

    def forward(
        self,
        x: Tensor,
        delta_s: Tensor | None = None,
        *,
        index: Tensor | None = None,
        attn_mask: Tensor | None = None,
        rope: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.project(x, delta_s, index)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self._turn(q, rope).type_as(v), self._turn(k, rope).type_as(v)
        mixed = attend(q, k, v, self._convert_mask(attn_mask, q))
        return apply_linear(self.out_proj, self.norm(mixed.transpose(1, 2).reshape(x.shape)))

    def _turn(self, heads: Tensor, rope: Tensor) -> Tensor:
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        first, patches = heads[:, :, : self.prefix_tokens], heads[:, :, self.prefix_tokens :]
        return torch.cat([first, apply_rot_embed_cat(patches, rope, **self.options)], dim=2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept the keys of an EvaAttention with split projections, of which that of the keys has no bias."""
        query = state_dict.get(f"{prefix}q_proj.bias")
        if query is not None and not self.are_keys_biased:
            state_dict.setdefault(f"{prefix}k_proj.bias", torch.zeros_like(query))
        super()._load_from_state_dict(state_dict, prefix, *args)


class BiasedAttention(SVDAttention):
    """SVDAttention with a bias for each relative position, as in BEiT.

    Args:
        source: the Attention of BEiT whose table of biases it shares.
    """

    def __init__(self, in_proj: FastSVDLinear, out_proj: nn.Linear, num_heads: int, source: Any) -> None:
        super().__init__(in_proj, out_proj, num_heads)
        self.relative_position_bias_table = source.relative_position_bias_table
        self.register_buffer("relative_position_index", source.relative_position_index, persistent=False)

    def forward(
        self,
        x: Tensor,
        delta_s: Tensor | None = None,
        *,
        index: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        return super().forward(x, delta_s, index=index, attn_mask=bias if attn_mask is None else bias + attn_mask)


class EvaTower(TimmTower):
    """Eva of timm: EVA, EVA-02, DINOv3 and the perception encoder."""

    def check(self, visual: Any) -> None:
        from timm.models.eva import EvaBlock, EvaBlockPostNorm

        self.check_trunk(visual, _PARTS, (EvaBlock, EvaBlockPostNorm))
        if getattr(visual.get_submodule(self.trunk_at), "rope_mixed", False):
            raise ValueError("backbone must turn the heads of all blocks alike, got rope_type='mixed'")

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        trunk = visual.get_submodule(self.trunk_at)
        return trunk.norm_pre(trunk._pos_embed(self.patches(trunk, images))[0])

    def shared(self, visual: Any) -> tuple[Tensor, ...]:
        trunk = visual.get_submodule(self.trunk_at)
        if trunk.rope is None:
            return ()
        is_stored = getattr(trunk.rope, "feat_shape", None) is not None
        return (trunk.rope.get_embed() if is_stored else trunk.rope.get_embed(shape=trunk.patch_embed.grid_size),)

    def run_block(
        self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None, *shared: Tensor
    ) -> Tensor:
        rope = shared[0] if shared else None
        is_post_norm = not hasattr(block, "gamma_1")
        normed = x if is_post_norm else block.norm1(x)
        is_modulated = isinstance(block.attn, RotaryAttention)
        attended = block.attn(normed, delta_s, rope=rope) if is_modulated else block.attn(normed, rope=rope)
        if is_post_norm:
            x = x + block.norm1(attended)
            return x + block.norm2(self.run_mlp(block.mlp, x, mlp_delta_s))
        x = x + _scaled(attended, block.gamma_1)
        return x + _scaled(self.run_mlp(block.mlp, block.norm2(x), mlp_delta_s), block.gamma_2)

    def create_modulated(self, attention: Any, rank: int | None) -> SVDAttention:
        kind = type(attention).__name__
        if kind not in ("EvaAttention", "AttentionRope"):
            raise ValueError(f"blocks must have EvaAttention or AttentionRope to be modulated, got {kind}")
        if getattr(attention, "gate", None) is not None or getattr(attention, "num_kv_groups", 1) > 1:
            raise ValueError(f"blocks must have attention without gates and groups to be modulated, got {kind}")
        return _modulated(RotaryAttention, attention, rank)

    def projections(self, attention: Any) -> list[Affine]:
        if attention.qkv is None:
            return [Affine(attention.q_proj), Affine(attention.k_proj), Affine(attention.v_proj)]
        if getattr(attention, "q_bias", None) is not None:
            raise ValueError("backbone must keep the bias of its attention in qkv, got q_bias and v_bias beside it")
        return [Affine(attention.qkv)]


class BeitTower(EvaTower):
    """Beit of timm."""

    def check(self, visual: Any) -> None:
        from timm.models.beit import Block

        self.check_trunk(visual, _PARTS, (Block,))

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        trunk = visual.get_submodule(self.trunk_at)
        patches = self.patches(trunk, images)
        x = torch.cat([trunk.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return x if trunk.pos_embed is None else x + trunk.pos_embed

    def leading_tokens(self, visual: Any) -> tuple[bool, int]:
        return True, 1

    def shared(self, visual: Any) -> tuple[Tensor, ...]:
        trunk = visual.get_submodule(self.trunk_at)
        return () if trunk.rel_pos_bias is None else (trunk.rel_pos_bias(),)

    def has_positions(self, visual: Any) -> bool:
        blocks = visual.get_submodule(self.blocks_at)
        return super().has_positions(visual) or blocks[0].attn.relative_position_bias_table is not None

    def run_block(
        self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None, *shared: Tensor
    ) -> Tensor:
        bias, normed = shared[0] if shared else None, block.norm1(x)
        is_modulated = isinstance(block.attn, SVDAttention)
        attended = block.attn(normed, delta_s, attn_mask=bias) if is_modulated else block.attn(normed, bias)
        x = x + _scaled(attended, block.gamma_1)
        return x + _scaled(self.run_mlp(block.mlp, block.norm2(x), mlp_delta_s), block.gamma_2)

    def create_modulated(self, attention: Any, rank: int | None) -> SVDAttention:
        has_biases = attention.relative_position_bias_table is not None
        return _modulated(BiasedAttention if has_biases else SVDAttention, attention, rank)

    def around_blocks(self, visual: Any) -> list[nn.Module]:
        trunk = visual.get_submodule(self.trunk_at)
        return [trunk.patch_embed.proj, trunk.patch_embed.norm, trunk.norm, trunk.fc_norm]


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x


def _modulated(kind: type[SVDAttention], attention: Any, rank: int | None) -> SVDAttention:
    """Return an attention of `kind` that has the projections of `attention` as one layer."""
    rates = {name: getattr(attention, name).p for name in ("attn_drop", "proj_drop")}
    if any(rates.values()):
        raise ValueError(f"blocks must have no dropout in their attention to be modulated, got {rates}")
    layers = [attention.qkv] if attention.qkv is not None else [attention.q_proj, attention.k_proj, attention.v_proj]
    packed = layers[0]
    biases: list[Any] = [getattr(attention, name, None) for name in _BIASES]
    if biases[0] is not None:
        packed = nn.Linear(packed.in_features, packed.out_features, device="meta")
        packed.weight, packed.bias = layers[0].weight, nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
        layers = [packed]
    plain = SVDAttention.from_linears(layers, attention.proj, attention.num_heads, rank)
    return plain if kind is SVDAttention else kind(plain.in_proj, plain.out_proj, plain.num_heads, attention)  # type: ignore[call-arg]
