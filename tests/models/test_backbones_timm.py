"""Backbones of open_clip whose image tower is one of timm: VisionTransformer, Eva and Beit, and what is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hystar_fast.models.backbones.eva import EvaTower
from hystar_fast.models.backbones.open_clip import OpenClipBackbone
from hystar_fast.models.backbones.timm import TimmTower
from hystar_fast.models.style import PrefixStyle
from hystar_fast.models.tiny import NORMALISE, RESIZE
from tests.support.small_backbones import (
    SIGLIP,
    assert_equal_before_and_after_injection,
    backbone_and_clip,
    images_of,
)
from tests.support.small_clip import IMAGE_SIZE
from tests.support.tolerance import relative_error


def timm_tower(name: str, pool: str) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": "none", "embed_dim": 32}


VARIANTS: dict[str, dict[str, Any]] = {
    "timm, attentional pool": {**SIGLIP, "embed_dim": 64},
    "timm, layer scale, average pool": {"timm_model_name": "test_vit2", "timm_pool": "avg", "timm_proj": "linear"},
    "timm, class token, classifier": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": ""},
    "timm, head of two layers": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "mlp"},
    "EVA": timm_tower("small_eva", "token"),
    "EVA, post-norm": timm_tower("small_eva_post_norm", "token"),
    "EVA-02": timm_tower("small_eva02", "token"),
    "EVA-02, packed": timm_tower("small_eva02_packed_glu", "avg"),
    "PE": timm_tower("small_pe", "map"),
    "DINOv3, keys without bias": timm_tower("small_dinov3", "token"),
    "DINOv3, any size": timm_tower("small_dinov3_dynamic", "avg"),
    "rotary ViT": timm_tower("small_rope", "avg"),
    "BEiT": timm_tower("small_beit", "avg"),
    "BEiT, shared biases": timm_tower("small_beit_shared", "token"),
    "BEiT, both kinds of biases": timm_tower("small_beit_both", "avg"),
    "ViTamin": timm_tower("small_vitamin", "avg"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_embeddings_equal_those_of_timm(tmp_path: Path, variant: str, dtype: torch.dtype, tolerance: float) -> None:
    backbone, clip = backbone_and_clip(tmp_path, dtype, **VARIANTS[variant])
    assert_equal_before_and_after_injection(backbone, clip, images_of(3, dtype), tolerance)


@pytest.mark.parametrize(
    ("name", "millions", "depth", "widths"),
    [("ViT-B-16-SigLIP", 203, 12, (768, 768)), ("ViT-SO400M-14-SigLIP", 877, 27, (1152, 1152))],
)
def test_published_siglips_are_adaptable(name: str, millions: int, depth: int, widths: tuple[int, int]) -> None:
    with torch.device("meta"):
        clip = open_clip.create_model(name, device="meta")
        backbone = OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)
        assert round(sum(parameter.numel() for parameter in backbone.parameters()) / 1e6) == millions
        assert (backbone.depth, (backbone.width, backbone.embed_dim)) == (depth, widths)
        assert backbone.inject_dynamic(depth, None) == widths[0]
        assert len(backbone.inject_static(1, None)) == 2


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("EVA02-L-14-336", EvaTower),
        ("EVA02-E-14-plus", EvaTower),
        ("PE-Core-B-16", EvaTower),
        ("MobileCLIP-B", TimmTower),
        ("ViTamin-L-336", TimmTower),
    ],
)
def test_other_published_towers_of_timm_are_adaptable(name: str, tower: type[TimmTower]) -> None:
    with torch.device("meta"):
        clip = open_clip.create_model(name, device="meta")
        backbone = OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)
        assert type(backbone.tower) is tower
        assert backbone.inject_dynamic(backbone.depth, None) == backbone.width
        assert len(backbone.inject_static(1, None)) in (2, 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("convnext_base", "ConvNeXt"), ("swin_base_patch4_window7_224", "SwinTransformer"), ("MobileCLIP-S1", "FastVit")],
)
def test_towers_in_stages_are_rejected_with_the_reason(name: str, kind: str) -> None:
    with torch.device("meta"):
        clip = open_clip.create_model(name, device="meta")
    reason = rf"timm's VisionTransformer, Eva or Beit as image tower, got {kind}, whose stages differ in width"
    with pytest.raises(ValueError, match=reason):
        OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)


def test_rotations_that_differ_from_block_to_block_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must turn the heads of all blocks alike, got rope_type='mixed'"):
        backbone_and_clip(tmp_path, **timm_tower("small_mixed_rope", "avg"))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("gate", nn.Linear(32, 32), "attention without gates and groups to be modulated, got AttentionRope"),
        ("num_kv_groups", 2, "attention without gates and groups to be modulated, got AttentionRope"),
        ("attn_drop", nn.Dropout(0.1), r"no dropout in their attention .* got {'attn_drop': 0\.1, 'proj_drop': 0\.0}"),
    ],
)
def test_rotary_attention_of_other_kinds_is_not_modulated(tmp_path: Path, part: str, value: Any, message: str) -> None:
    backbone, _ = backbone_and_clip(tmp_path, **timm_tower("small_pe", "map"))
    setattr(backbone.blocks[0].attn, part, value)
    with pytest.raises(ValueError, match=message):
        backbone.inject_dynamic(1, None)


@pytest.mark.parametrize("name", ["small_eva", "small_eva02", "small_pe", "small_beit", "small_beit_shared"])
def test_modulated_attention_with_positions_loads_the_keys_of_timm(tmp_path: Path, name: str) -> None:
    pool = "map" if name == "small_pe" else "avg"
    backbone, clip = backbone_and_clip(tmp_path, **timm_tower(name, pool))
    backbone.inject_dynamic(2, None)
    attention, images = clip.visual.trunk.blocks[1].attn, images_of(2)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    expected = clip.encode_image(images)
    assert relative_error(backbone.encode_image(images), expected) > 1e-3
    missing, unexpected = backbone.blocks[1].attn.load_state_dict(attention.state_dict(), strict=False)
    assert not missing and not unexpected
    assert relative_error(backbone.encode_image(images), expected) < 1e-5


@pytest.mark.parametrize("name", ["small_eva02", "small_eva02_packed_glu", "small_vitamin"])
def test_gated_mlps_take_static_offsets_and_no_dynamic_ones(tmp_path: Path, name: str) -> None:
    backbone, _ = backbone_and_clip(tmp_path, **timm_tower(name, "avg"))
    with pytest.raises(ValueError, match=r"must have an MLP of one layer after the other, got \w*(GLU|Glu)"):
        backbone.inject_dynamic_mlp(1, None)
    names, images = backbone.inject_static(1, None), images_of(2)
    expected = backbone.encode_image(images)
    expected.square().cumsum(1).sum().backward()
    for place in names:
        offset = backbone.get_submodule(place).delta_s_static
        assert offset.grad is not None and bool(offset.grad.all())
    assert len(names) == (2 if name == "small_eva02_packed_glu" else 3)


def test_timm_towers_of_other_kinds_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"VisionTransformer, Eva or Beit as image tower, got ResNet, which has no patch_embed, _pos"
    ):
        backbone_and_clip(tmp_path / "resnet", timm_model_name="test_resnet", timm_proj="linear")
    vit = {"timm_model_name": "test_vit", "timm_proj": "none", "embed_dim": 64}
    with pytest.raises(ValueError, match="one embedding for each image, got global_pool=''"):
        backbone_and_clip(tmp_path / "unpooled", timm_pool="", **vit)
    backbone, _ = backbone_and_clip(tmp_path / "vit", timm_pool="map", **vit)
    backbone.blocks[0].attn.q_norm = nn.LayerNorm(32)
    with pytest.raises(ValueError, match="plain softmax attention"):
        backbone.inject_dynamic(1, None)
    backbone.blocks[1].attn.proj_drop.p = 0.1
    with pytest.raises(ValueError, match=r"no dropout in their attention .* got attn_drop=0\.0 and proj_drop=0\.1"):
        backbone.inject_dynamic(2, None)
    clip = backbone.clip
    clip.visual.trunk.blocks[2] = nn.TransformerEncoderLayer(64, 2)
    with pytest.raises(ValueError, match="timm's Block, got TransformerEncoderLayer"):
        OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)


def test_the_prefix_style_without_a_class_token_leaves_out_registers(tmp_path: Path) -> None:
    backbone, _ = backbone_and_clip(tmp_path, timm_model_name="test_vit2", timm_pool="avg", timm_proj="linear")
    assert backbone.leading_tokens == (False, 1)
    extractor, tokens = PrefixStyle(backbone, 1), backbone.prefix(images_of(2), 1)
    assert tokens.shape[1] == 1 + (IMAGE_SIZE // 16) ** 2
    parts = [tokens[:, 1:].mean(1), tokens[:, 1:].std(1, correction=0)]
    truth = F.normalize(torch.cat([F.layer_norm(part, (backbone.width,)) for part in parts], 1), dim=1)
    assert relative_error(extractor(tokens), truth) < 1e-5
    moved, shifted = tokens.clone(), tokens.clone()
    moved[:, 0] += torch.randn(backbone.width)
    shifted[:, 1] += torch.randn(backbone.width)
    assert torch.equal(extractor(moved), extractor(tokens))
    assert relative_error(extractor(shifted), extractor(tokens)) > 1e-3
