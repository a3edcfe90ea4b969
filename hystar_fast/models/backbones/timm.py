"""Vision transformers of timm: those of ALBEF, and those that open_clip wraps (SigLIP and others)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hystar_fast.models.backbones.tower import Affine, VisionTower
from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.views import own_tensor

_PARTS = ("patch_embed", "_pos_embed", "patch_drop", "norm_pre", "blocks", "norm", "forward_head")
_EMBEDDINGS = ("PatchEmbed", "HybridEmbed")


class TimmTower(VisionTower):
    """VisionTransformer of timm with pre-norm blocks.

    Args:
        trunk_at: name of the VisionTransformer within the module `visual`.
        head_at: name of the module from the pooled output of the trunk to embeddings.
    """

    mlp_parts = ("fc1", "act", "drop1", "norm", "fc2", "drop2")

    def __init__(self, trunk_at: str, head_at: str) -> None:
        self.trunk_at, self.head_at = trunk_at, head_at
        self.blocks_at = f"{trunk_at}.blocks"

    def check(self, visual: Any) -> None:
        from timm.models.vision_transformer import Block

        self.check_trunk(visual, _PARTS, (Block,))

    def check_trunk(self, visual: Any, parts: Sequence[str], kinds: tuple[type, ...]) -> None:
        """Raise a ValueError unless the trunk has `parts`, blocks of `kinds`, an embedding of patches and a pooling."""
        trunk = visual.get_submodule(self.trunk_at)
        missing = [part for part in parts if not hasattr(trunk, part)]
        if missing:
            is_staged = "blocks" in missing and (hasattr(trunk, "layers") or hasattr(trunk, "stages"))
            lacks = f"which has no {', '.join(missing)}"
            reason = "whose stages differ in width and resolution" if is_staged else lacks
            raise ValueError(
                "backbone must have timm's VisionTransformer, Eva or Beit as image tower, "
                f"got {type(trunk).__name__}, {reason}"
            )
        embedding = type(trunk.patch_embed).__name__
        if embedding not in _EMBEDDINGS:
            raise ValueError(f"backbone must embed patches with {' or '.join(_EMBEDDINGS)}, got {embedding}")
        if getattr(trunk, "attn_pool", None) is None and not trunk.global_pool:
            raise ValueError("backbone must pool its tokens into one embedding for each image, got global_pool=''")
        for block in trunk.blocks:
            if type(block) not in kinds:
                needs = " or ".join(kind.__name__ for kind in kinds)
                raise ValueError(f"backbone blocks must be timm's {needs}, got {type(block).__name__}")

    def leading_tokens(self, visual: Any) -> tuple[bool, int]:
        trunk = visual.get_submodule(self.trunk_at)
        return trunk.cls_token is not None, int(trunk.num_prefix_tokens)

    def patch_weight(self, visual: Any) -> Tensor:
        return self._patch_embedding(visual).proj.weight

    def _patch_embedding(self, visual: Any) -> Any:
        """Return the patch embedding where it is one convolution; a method that needs that refuses others here."""
        embedding = visual.get_submodule(self.trunk_at).patch_embed
        if not isinstance(getattr(embedding, "norm", None), nn.Module):
            raise ValueError(f"backbone must embed patches with one convolution, got {type(embedding).__name__}")
        return embedding

    def parts_of(self, mlp: Any) -> list[tuple[str, nn.Module]]:
        if type(mlp).__name__ in ("GluMlp", "SwiGLU", "GeGluMlp"):
            raise ValueError(f"blocks must have an MLP of one layer after the other, got {type(mlp).__name__}")
        return super().parts_of(mlp)

    def patches(self, trunk: Any, images: Tensor) -> Tensor:
        """Embed the patches of images, in the dtype of the tower."""
        return trunk.patch_embed(images.to(next(trunk.patch_embed.parameters()).dtype))

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        trunk = visual.get_submodule(self.trunk_at)
        return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(self.patches(trunk, images))))

    def run_block(
        self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None, *shared: Tensor
    ) -> Tensor:
        normed = block.norm1(x)
        attended = block.attn(normed, delta_s) if isinstance(block.attn, SVDAttention) else block.attn(normed)
        x = x + block.drop_path1(block.ls1(attended))
        return x + block.drop_path2(block.ls2(self.run_mlp(block.mlp, block.norm2(x), mlp_delta_s)))

    def pool(self, visual: Any, x: Tensor) -> Tensor:
        trunk = visual.get_submodule(self.trunk_at)
        return own_tensor(visual.get_submodule(self.head_at)(trunk.forward_head(trunk.norm(x))))

    def create_modulated(self, attention: Any, rank: int | None) -> SVDAttention:
        from timm.models import vision_transformer

        plain_attention: Any = vars(vision_transformer)["Attention"]
        norms = [getattr(attention, part, nn.Identity()) for part in ("q_norm", "k_norm", "norm")]
        is_plain = all(isinstance(norm, nn.Identity) for norm in norms) and getattr(attention, "gate", None) is None
        if type(attention) is not plain_attention or not is_plain:
            raise ValueError(
                f"blocks must have plain softmax attention to be modulated, got {type(attention).__name__}, "
                "which is another kind or normalises or gates its heads"
            )
        if attention.attn_drop.p or attention.proj_drop.p:
            rates = f"attn_drop={attention.attn_drop.p} and proj_drop={attention.proj_drop.p}"
            raise ValueError(f"blocks must have no dropout in their attention to be modulated, got {rates}")
        return SVDAttention.from_linears([attention.qkv], attention.proj, attention.num_heads, rank)

    def projections(self, attention: Any) -> list[Affine]:
        return [Affine(attention.qkv)]

    def around_blocks(self, visual: Any) -> list[nn.Module]:
        trunk, embedding = visual.get_submodule(self.trunk_at), self._patch_embedding(visual)
        return [embedding.proj, embedding.norm, trunk.norm_pre, trunk.norm, trunk.fc_norm]

    def widths(self, visual: Any) -> tuple[int, int]:
        """Return the width of the tokens, and that of the last linear layer after pooling or, without one, the same."""
        trunk, head = visual.get_submodule(self.trunk_at), visual.get_submodule(self.head_at)
        after = [layer for part in (trunk.head, head) for layer in part.modules() if isinstance(layer, nn.Linear)]
        return int(trunk.embed_dim), int(after[-1].out_features if after else trunk.num_features)
