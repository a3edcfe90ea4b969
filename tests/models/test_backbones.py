"""Backbones of open_clip: every variant of its vision transformer, and rejected models and names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import RobertaConfig

from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.open_clip import OpenClipBackbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.tiny import NORMALISE, RESIZE
from tests.support.small_backbones import (
    OWN_ATTENTION,
    TEXT,
    assert_equal_before_and_after_injection,
    backbone_and_clip,
    images_of,
)
from tests.support.small_clip import IMAGE_SIZE, write_small_clip
from tests.support.tolerance import relative_error

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.3},
    "average pool": {"pool_type": "avg", "final_ln_after_pool": True},
    "attentional pool": {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2},
    "no ln_pre, fixed positions": {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
    "open_clip's own attention": OWN_ATTENTION,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_embeddings_equal_those_of_open_clip(
    tmp_path: Path, variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    backbone, clip = backbone_and_clip(tmp_path, dtype, **VARIANTS[variant])
    assert_equal_before_and_after_injection(backbone, clip, images_of(3, dtype), tolerance)


def test_modulated_attention_of_one_block_equals_nn_multihead_attention(tmp_path: Path) -> None:
    backbone, clip = backbone_and_clip(tmp_path)
    x, delta_s = torch.randn(3, 17, backbone.width), 0.3 * torch.randn(3, backbone.width)
    attention: nn.MultiheadAttention = clip.visual.transformer.resblocks[0].attn
    backbone.inject_dynamic(1, None)
    layer = backbone.blocks[0].attn
    y = layer(x, delta_s)
    for sample in range(3):
        weight = (layer.in_proj.u * (layer.in_proj.s + delta_s[sample])) @ layer.in_proj.vh
        attention.in_proj_weight.data.copy_(weight)
        row = x[sample : sample + 1]
        assert (y[sample : sample + 1] - attention(row, row, row, need_weights=False)[0]).abs().max() <= 1e-5


def test_another_image_size_resizes_the_position_embeddings(tmp_path: Path) -> None:
    name = write_small_clip(tmp_path / "clip")
    backbone = create_backbone(HystarConfig(backbone=name, pretrained="folder", image_size=48))
    truth = open_clip.create_model(name.removeprefix("open_clip:"), force_image_size=48).eval()
    assert backbone.image_size == (48, 48)
    images = torch.randn(2, 3, 48, 48)
    assert relative_error(backbone.encode_image(images), truth.encode_image(images)) < 1e-5


def test_patch_dropout_drops_nothing_of_a_frozen_tower(tmp_path: Path) -> None:
    backbone, clip = backbone_and_clip(tmp_path, patch_dropout=0.5)
    images = images_of(2)
    expected = clip.encode_image(images)
    assert relative_error(backbone.encode_image(images), expected) < 1e-5
    assert relative_error(backbone.train().encode_image(images), expected) < 1e-5
    assert relative_error(clip.train().encode_image(images), expected) > 1e-2


def test_random_weights_are_the_same_every_time_and_do_not_change_the_generator(tmp_path: Path) -> None:
    config = HystarConfig(backbone=write_small_clip(tmp_path, weights=False), pretrained=None)
    state = torch.get_rng_state()
    first = create_backbone(config)
    torch.rand(7)
    second = create_backbone(config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.set_rng_state(state)
    create_backbone(config)
    assert torch.equal(state, torch.get_rng_state())


def test_preprocess_and_tokenizer_of_the_tiny_backbone_feed_its_encoders() -> None:
    built = create_backbone(HystarConfig(backbone="tiny", pretrained=None))
    image = built.preprocess(Image.new("RGB", (50, 40), (255, 0, 0)))
    assert tuple(image.shape[1:]) == built.image_size
    assert tuple(built.encode_image(image[None]).shape) == (1, built.embed_dim)
    assert tuple(built.encode_text(built.tokenizer(["one", "two"])).shape) == (2, built.embed_dim)
    red, green = image[0].mean(), image[1].mean()
    assert torch.isclose(red * built.normalise.std[0] + built.normalise.mean[0], torch.tensor(1.0), atol=1e-4)
    assert torch.isclose(green * built.normalise.std[1] + built.normalise.mean[1], torch.tensor(0.0), atol=1e-4)


def test_weights_trained_with_quick_gelu_get_quick_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flag open_clip computes with GELU and only warns."""
    passed: dict[str, Any] = {}

    def record(name: str, **settings: Any) -> None:
        passed.update(settings, name=name)
        raise RuntimeError("not downloaded in a test")

    monkeypatch.setattr(open_clip, "create_model", record)
    with pytest.raises(ValueError, match="pretrained='openai'"):
        create_backbone(HystarConfig(backbone="open_clip:ViT-L/14"))
    assert (passed["name"], passed["pretrained"], passed["force_quick_gelu"]) == ("ViT-L-14", "openai", True)
    with pytest.raises(ValueError, match="laion2b"):
        create_backbone(HystarConfig(backbone="open_clip:ViT-L-14", pretrained="laion2b_s32b_b82k"))
    assert passed["force_quick_gelu"] is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "transformers:/no/such/folder"}, "'transformers:/no/such/folder' .* could not be loaded"),
        ({"backbone": "albef:/weights.pth"}, "'albef:/weights.pth' .* could not be loaded"),
        ({"backbone": "tiny", "image_size": 96}, "image_size must be None for backbone 'tiny', got 96"),
        ({"backbone": "open_clip:ViT-X-99"}, "backbone must be a model of open_clip.* got 'open_clip:ViT-X-99'"),
        (
            {"backbone": "open_clip:ViT-B-32", "pretrained": "nowhere"},
            "pretrained must be a tag of 'ViT-B-32'.*'nowhere'",
        ),
        ({"backbone": "open_clip:local-dir:/no/such/folder"}, "no/such/folder.*could not be loaded"),
        ({"backbone": "tiny", "pretrained": "/no/such/file"}, "pretrained .* '/no/such/file'"),
    ],
)
def test_bad_names_of_backbones_and_weights(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(HystarConfig(**fields))


def test_missing_and_damaged_weights_are_rejected(tmp_path: Path) -> None:
    bare = write_small_clip(tmp_path / "bare", weights=False)
    with pytest.raises(ValueError, match="could not be loaded"):
        create_backbone(HystarConfig(backbone=bare, pretrained="folder"))
    damaged = write_small_clip(tmp_path / "damaged")
    file = tmp_path / "damaged" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="could not be loaded"):
        create_backbone(HystarConfig(backbone=damaged, pretrained="folder"))


def test_openais_torchscript_is_refused_with_a_way_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's files hold weights in half precision, and whole numbers such as input_resolution beside them."""
    monkeypatch.chdir(tmp_path)
    clip, folder = open_clip.create_model(write_small_clip(tmp_path / "clip").removeprefix("open_clip:")), Path("more")
    config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    folder.mkdir()
    (folder / "small-openai.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    program = nn.Module()
    program.register_buffer("input_resolution", torch.tensor(32))
    for name, value in clip.half().state_dict().items():
        *path, last = name.split(".")
        owner = program
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, nn.Parameter(value))
    torch.jit.save(torch.jit.script(program), "small.pt")
    with pytest.raises(ValueError, match=r"got the TorchScript program 'small\.pt'.* pretrained='openai'") as refused:
        create_backbone(HystarConfig("open_clip:small-openai", "small.pt"))
    (command,) = re.findall(r"w = .*'weights\.pt'\)", str(refused.value))
    exec(command, {"torch": torch})
    backbone, images = create_backbone(HystarConfig("open_clip:small-openai", "weights.pt")), images_of(2)
    assert relative_error(backbone.encode_image(images), clip.float().eval().encode_image(images)) < 1e-5


def test_image_towers_without_blocks_are_rejected() -> None:
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    text = {"context_length": 4, "vocab_size": 10, "width": 8, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(8, resnet, text)
    with pytest.raises(ValueError, match=r"VisionTransformer.*ModifiedResNet"):
        OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)


def test_the_attention_of_newer_versions_of_open_clip_is_modulated(tmp_path: Path) -> None:
    """It has the keys of nn.MultiheadAttention and returns a tensor."""
    backbone, clip = backbone_and_clip(tmp_path)
    for block in backbone.blocks:
        own = open_clip.transformer.Attention(backbone.width, block.attn.num_heads)
        own.load_state_dict(block.attn.state_dict())
        block.attn = own
    images = images_of(2)
    assert relative_error(backbone.encode_image(images), clip.encode_image(images)) < 1e-5
    backbone.inject_dynamic(2, None)
    delta_s = torch.randn(2, backbone.width)
    modulated = backbone.encode_image(images, {2: delta_s})
    usual, _ = backbone_and_clip(tmp_path)
    usual.inject_dynamic(2, None)
    assert relative_error(modulated, usual.encode_image(images, {2: delta_s})) < 1e-5


def test_training_mode_drops_neither_words_nor_patches(tmp_path: Path) -> None:
    """Text towers of transformers have dropout, and image towers of open_clip can drop patches."""
    sizes = {**TEXT, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    RobertaConfig(**sizes).save_pretrained(tmp_path)
    vision = {
        "image_size": IMAGE_SIZE,
        "layers": 2,
        "width": 32,
        "head_width": 8,
        "patch_size": 8,
        "patch_dropout": 0.5,
    }
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_proj_type": "linear"}
    clip = open_clip.CustomTextCLIP(24, {**vision, "patch_dropout": 0.5}, {**text, "hf_pooler_type": "mean_pooler"})
    backbone = OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)
    images, tokens = images_of(3), torch.tensor([[4, 5, 6, 3], [4, 7, 8, 3]])

    def outputs() -> list[Tensor]:
        return [backbone.encode_image(images), backbone.prefix(images, 1), backbone.encode_text(tokens)]

    expected = outputs()
    nn.Sequential(backbone).train()
    for in_training_mode, in_evaluation_mode in zip(outputs(), expected, strict=True):
        assert torch.equal(in_training_mode, in_evaluation_mode)
    clip.train()
    assert outputs()[1].shape[1] < expected[1].shape[1], "the tower itself must drop patches in training mode"
    assert relative_error(outputs()[2], expected[2]) > 1e-2, "the text tower itself must drop activations"


def test_image_towers_without_pooling_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one embedding for each image, got pool_type='none'"):
        backbone_and_clip(tmp_path, pool_type="none")


def test_attention_that_scales_its_heads_cannot_be_modulated(tmp_path: Path) -> None:
    backbone, clip = backbone_and_clip(tmp_path, block_type="custom", qk_norm=True)
    images = images_of(2)
    assert relative_error(backbone.encode_image(images), clip.encode_image(images)) < 1e-5
    with pytest.raises(ValueError, match="plain softmax attention"):
        backbone.inject_dynamic(1, None)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(3, 32, 32), ValueError, r"images .*\[B, 3, 32, 32\], got \[3, 32, 32\]"),
        (torch.zeros(1, 3, 64, 64), ValueError, r"got \[1, 3, 64, 64\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "images must be floating point.*uint8"),
        ([[0.0]], TypeError, "images must be a tensor"),
        (torch.zeros(1, 3, 32, 32, device="meta"), ValueError, "images must be on .*cpu, got meta"),
    ],
)
def test_bad_images(tmp_path: Path, images: Any, error: type[Exception], message: str) -> None:
    backbone, _ = backbone_and_clip(tmp_path)
    with pytest.raises(error, match=message):
        backbone.encode_image(images)


@pytest.mark.parametrize(
    ("tokens", "error"), [(torch.zeros(2, 12), TypeError), ("text", TypeError), (torch.zeros(12).long(), ValueError)]
)
def test_bad_tokens(tmp_path: Path, tokens: Any, error: type[Exception]) -> None:
    backbone, _ = backbone_and_clip(tmp_path)
    with pytest.raises(error, match="tokens"):
        backbone.encode_text(tokens)
