"""Backbones of transformers: the published sizes, fused attention, and the errors for missing files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from hystar_fast.models.backbones import Backbone, create_backbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from tests.support.small_backbones import disturb, write_transformers
from tests.support.small_clip import IMAGE_SIZE
from tests.support.tolerance import relative_error


def create(folder: Path, pretrained: str | None = "folder") -> Backbone:
    return create_backbone(HystarConfig(backbone=f"transformers:{folder}", pretrained=pretrained))


def edit(file: Path, part: str, **values: Any) -> None:
    stored = json.loads(file.read_text())
    stored[part].update(values)
    file.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("config", "parameters", "blocks", "width"),
    [
        (transformers.CLIPConfig(), 151_277_313, (2, 4, 6), 768),
        (
            transformers.CLIPConfig(
                text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
                vision_config={
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_attention_heads": 16,
                    "num_hidden_layers": 24,
                    "patch_size": 14,
                },
                projection_dim=768,
            ),
            427_616_513,
            (4, 7, 10, 13),
            1024,
        ),
        (transformers.SiglipConfig(), 203_155_970, (2, 4, 6), 768),
    ],
    ids=["clip-vit-base-patch32", "clip-vit-large-patch14", "siglip-base-patch16-224"],
)
def test_published_sizes(tmp_path: Path, config: Any, parameters: int, blocks: tuple[int, ...], width: int) -> None:
    """Count parameters on the meta device, where only shapes exist."""
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = Hystar(
            HystarConfig(backbone=f"transformers:{tmp_path}", pretrained=None, style_pretrained=None, blocks=None)
        )
    counts = model.parameter_counts()
    assert counts["backbone"] == parameters
    assert tuple(sorted(map(int, model.hypernetworks))) == blocks
    assert counts["static"] == model.backbone.depth * 2 * width
    assert counts["dynamic"] == len(blocks) * (769 * 2 * width + (2 * width + 1) * width)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "blip"])
def test_a_configuration_alone_gives_random_weights_and_names_missing_files(tmp_path: Path, kind: str) -> None:
    write_transformers(kind, tmp_path, inputs=False)
    (tmp_path / "model.safetensors").unlink()
    state = torch.get_rng_state()
    first, second = create(tmp_path, None), create(tmp_path, None)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert first.encode_image(images).isfinite().all()
    with pytest.raises(ValueError, match="has no files of an image processor"):
        first.preprocess(Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match="has no files of a tokenizer"):
        first.tokenizer(["a cat"])
    with pytest.raises(ValueError, match="could not be loaded"):
        create(tmp_path)
    own: dict[str, Any] = {"style_pretrained": None, "style_normalization": "own", "blocks": (1,)}
    with pytest.raises(ValueError, match='style_normalization must be "backbone"'):
        Hystar(HystarConfig(backbone=f"transformers:{tmp_path}", pretrained=None, **own))


def test_blip_attends_without_a_matrix_of_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 145 tokens, which are too many for plain products. The attention of the library stores the matrix."""
    write_transformers("blip", tmp_path, inputs=False)
    edit(tmp_path / "config.json", "vision_config", image_size=96)
    backbone, fused = create(tmp_path, None), F.scaled_dot_product_attention
    disturb(backbone)
    images, shapes = torch.randn(2, 3, 96, 96), []

    def record(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        shapes.append((query.shape, key.shape, value.shape))
        return fused(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    found = backbone.encode_image(images)
    assert shapes == [((2, 4, 145, 8),) * 3] * backbone.depth
    library: Any = backbone.get_submodule("model")
    expected = library.vision_proj(library.vision_model(pixel_values=images).last_hidden_state[:, 0])
    assert len(shapes) == backbone.depth, "the attention of the library must not be fused"
    assert relative_error(found, expected) < 1e-5


def test_padding_does_not_change_blips_text_embedding(tmp_path: Path) -> None:
    write_transformers("blip", tmp_path)
    backbone = create(tmp_path)
    padded = backbone.tokenizer(["a red cat"])
    length = int((padded != 0).sum())
    assert length < padded.shape[1] <= 35
    assert relative_error(backbone.encode_text(padded[:, :length]), backbone.encode_text(padded)) < 1e-5


def test_weights_without_a_head_are_rejected(tmp_path: Path) -> None:
    """The library itself would initialise the missing head at random."""
    write_transformers("blip", tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not name.startswith("vision_proj")}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"could not be loaded.*lack vision_proj\.bias, vision_proj\.weight"):
        create(tmp_path)


def test_weights_in_half_precision_are_loaded_in_float32(tmp_path: Path) -> None:
    small = write_transformers("siglip", tmp_path)
    small.untouched().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in create(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "part", "values", "message"),
    [
        ("clip", "vision_config", {"attention_dropout": 0.1}, "attention_dropout=0 in its vision_config, got 0.1"),
        ("blip", "vision_config", {"attention_dropout": 0.1}, "attention_dropout=0 in its vision_config, got 0.1"),
        ("siglip", "vision_config", {"vision_use_head": False}, "vision_use_head=False"),
    ],
)
def test_models_that_the_loop_cannot_run_are_rejected(
    tmp_path: Path, kind: str, part: str, values: dict[str, Any], message: str
) -> None:
    write_transformers(kind, tmp_path, inputs=False)
    edit(tmp_path / "config.json", part, **values)
    with pytest.raises(ValueError, match=message):
        create(tmp_path, None)


def test_other_types_are_rejected(tmp_path: Path) -> None:
    needs = "its type must be clip or siglip or siglip2 or blip, models of images and text"
    for config in (transformers.BertConfig(), transformers.DINOv3ViTConfig(), transformers.BeitConfig()):
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"{needs}, got '{config.model_type}'"):
            create(tmp_path, None)
