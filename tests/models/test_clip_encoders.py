"""CLIP with a ResNet: sizes of OpenAI's, encoders of the library, and what it is not for."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from hystar_fast.models.backbone_identity import backbone_fingerprints
from hystar_fast.models.backbones import create_backbone, create_encoders
from hystar_fast.models.backbones.clip_encoders import CLIPEncoders, is_resnet
from hystar_fast.models.backbones.text_tower import text_tower
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import weightless
from hystar_fast.models.tiny import NORMALISE, RESIZE
from tests.support.small_clip import small_config

RN50 = HystarConfig(backbone="open_clip:RN50", pretrained=None, style="clip", blocks=None)


def small() -> tuple[CLIPEncoders, open_clip.CLIP]:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None}
    text = {"context_length": 9, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    clip = open_clip.CLIP(24, vision, text).eval()
    return CLIPEncoders(clip, RESIZE, NORMALISE, lambda texts: torch.ones(len(texts), 9, dtype=torch.long)), clip


def test_the_sizes_of_rn50_are_those_of_openai() -> None:
    with weightless(RN50) as config:
        found = create_encoders(config)
    assert isinstance(found, CLIPEncoders) and found.embed_dim == 1024
    image = sum(parameter.numel() for parameter in found.clip.visual.parameters())
    whole = sum(parameter.numel() for parameter in found.parameters())
    assert (image, whole, whole - image - 1) == (38_316_896, 102_007_137, 63_690_240)
    tower = text_tower(found)
    assert (tower.width, tower.context) == (512, 77) and found.resize.size == (224, 224)


def test_a_vision_transformer_is_the_backbone_of_all_other_methods(tmp_path: Path) -> None:
    assert isinstance(create_encoders(small_config(tmp_path)), TowerBackbone)
    assert [is_resnet(name) for name in ("RN50", "RN50x4", "ViT-B-32", "ViT-B/32")] == [True, True, False, False]
    with pytest.raises(ValueError, match="backbone must have a VisionTransformer of open_clip"):
        create_backbone(RN50)


def test_its_vectors_are_those_of_the_library_and_no_statistics_move() -> None:
    encoders, clip = small()
    images, tokens = torch.rand(2, 3, 64, 64), torch.randint(1, 60, (2, 9))
    encoders.train(True)
    for _ in range(2):
        assert torch.equal(encoders.encode_image(images), clip.encode_image(images))
        assert torch.equal(encoders.encode_text(tokens), clip.encode_text(tokens))
    assert not clip.training and not any(parameter.requires_grad for parameter in encoders.parameters())
    ids = text_tower(encoders).encode_ids(tokens)
    torch.testing.assert_close(ids, clip.encode_text(tokens), rtol=0, atol=1e-5)
    prints = backbone_fingerprints(encoders)
    assert prints["backbone"] and prints["tokenizer"] and prints["activation"] is None
