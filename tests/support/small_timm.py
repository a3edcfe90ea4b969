"""Small vision transformers of timm under names of their own: open_clip takes a tower of timm by its name alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vitamin import GeGluMlp, MbConvStages, VitCfg
from torch import nn

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "depth": 4}
_DINOV3 = {"dynamic_img_size": False, "global_pool": "token", "init_values": 0.3, "num_reg_tokens": 2}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "small_eva": ("eva_giant_patch14_clip_224", {"mlp_ratio": 2}),
    "small_eva_post_norm": ("eva02_enormous_patch14_clip_224", {"mlp_ratio": 2}),
    "small_eva02": ("eva02_base_patch16_clip_224", {"ref_feat_shape": (2, 2)}),
    "small_eva02_packed_glu": ("eva02_tiny_patch14_224", {"ref_feat_shape": (2, 2)}),
    "small_pe": ("vit_pe_core_tiny_patch16_384", {"ref_feat_shape": (3, 3)}),
    "small_dinov3": ("vit_small_patch16_dinov3_qkvb", {**_DINOV3}),
    "small_dinov3_dynamic": ("vit_small_plus_patch16_dinov3", {**_DINOV3, "dynamic_img_size": True}),
    "small_rope": ("vit_small_patch16_rope_224", {"init_values": 0.3}),
    "small_mixed_rope": ("vit_small_patch16_rope_mixed_224", {}),
    "small_beit": ("beit_base_patch16_224", {"init_values": 0.3}),
    "small_beit_shared": ("beitv2_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "small_beit_both": ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True}),
}


@register_model
def small_vitamin(pretrained: bool = False, **options: Any) -> nn.Module:
    """A ViTamin, whose patches come out of convolutions in three stages, of stride 16."""
    stages = MbConvStages(VitCfg(embed_dim=(8, 16, 32), depths=(1, 1, 2), stem_width=8))
    embed = partial(HybridEmbed, backbone=stages, proj=False)
    sizes: Any = {**SIZES, "patch_size": 1, "embed_layer": embed, "mlp_layer": GeGluMlp, "mlp_ratio": 2.0}
    return build_model_with_cfg(VisionTransformer, "small_vitamin", False, **{**sizes, "class_token": False, **options})


def _register(name: str, source: str, changes: dict[str, Any]) -> None:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return timm.create_model(source, **{**SIZES, **changes, **options})

    build.__name__ = build.__qualname__ = name
    register_model(build)


for _name, (_source, _changes) in _MODELS.items():
    _register(_name, _source, _changes)
