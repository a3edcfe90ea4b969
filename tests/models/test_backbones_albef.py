"""ALBEF from files of the published layouts: the tensors read, other image sizes, and rejected files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hystar_fast.models.backbones import Backbone, create_backbone
from hystar_fast.models.backbones.albef import TOKENIZER_HINT, resize_positions
from hystar_fast.models.backbones.processors import load_tokenizer
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from tests.support.small_backbones import EMBED, write_albef
from tests.support.small_clip import IMAGE_SIZE
from tests.support.tolerance import relative_error


def create(folder: Path, **fields: Any) -> Backbone:
    return create_backbone(
        HystarConfig(**{"backbone": f"albef:{folder / 'ALBEF.pth'}", "pretrained": "file", **fields})
    )


@pytest.mark.parametrize("pretraining", [True, False])
def test_both_published_layouts_are_read(tmp_path: Path, pretraining: bool) -> None:
    small = write_albef(tmp_path, pretraining=pretraining)
    backbone, truth = create(tmp_path), small.untouched()
    images, tokens = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE), backbone.tokenizer(["a red cat", "cat"])
    assert relative_error(backbone.encode_image(images), truth.encode_image(images)) < 1e-5
    assert relative_error(backbone.encode_text(tokens), truth.encode_text(tokens)) < 1e-5
    kept = {name.removeprefix("albef.") for name in backbone.state_dict()}
    assert kept == set(truth.state_dict())


@pytest.mark.parametrize("size", [24, 48])
def test_another_image_size_resizes_the_position_embeddings(tmp_path: Path, size: int) -> None:
    small = write_albef(tmp_path)
    backbone, truth = create(tmp_path, image_size=size), small.untouched()
    trained = truth.visual_encoder.pos_embed.detach()
    grid = trained[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(size // 8, size // 8), mode="bicubic", align_corners=False)
    truth.visual_encoder.set_input_size((size, size))
    truth.visual_encoder.pos_embed.data = torch.cat([trained[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    images = torch.randn(2, 3, size, size)
    assert backbone.image_size == (size, size)
    assert relative_error(backbone.encode_image(images), truth.encode_image(images)) < 1e-5


def test_positions_are_resized_bicubically_without_antialiasing() -> None:
    """At half the size each new point lies midway between four others: weights (-3, 19, 19, -3) / 32 on each axis."""
    positions = torch.randn(1, 1 + 16, 5)
    assert resize_positions(positions, 4) is positions
    smaller = resize_positions(positions, 2)
    grid = positions[0, 1:].view(4, 4, 5)
    weights = torch.tensor([-3.0, 19.0, 19.0, -3.0]) / 32
    upper = torch.stack([grid[0], grid[0], grid[1], grid[2]])  # the edge is repeated
    corner = torch.einsum("i,ijd->jd", weights, upper)
    corner = torch.stack([corner[0], corner[0], corner[1], corner[2]])
    assert torch.equal(smaller[:, 0], positions[:, 0])
    assert torch.allclose(smaller[0, 1], weights @ corner, atol=1e-5)


def test_the_published_sizes() -> None:
    """Count a ViT-B/16 at 256 pixels, six layers of BERT base, and two projections to 256, on the meta device."""
    with torch.device("meta"):
        model = Hystar(HystarConfig(backbone="albef:none", pretrained=None, style_pretrained=None, blocks=None))
    vision = 85_798_656 + (257 - 197) * 768  # timm's vit_base_patch16_224 without its head, and more positions
    text = (30_522 + 512 + 2 + 2) * 768 + 6 * 7_087_872
    counts = model.parameter_counts()
    assert counts["backbone"] == vision + text + 2 * (768 + 1) * 256
    assert sorted(map(int, model.hypernetworks)) == [2, 4, 6]
    assert counts["static"] == 12 * 2 * 768
    assert model.backbone.image_size == (256, 256)


def test_random_weights_have_the_sizes_of_the_file(tmp_path: Path) -> None:
    write_albef(tmp_path)
    first, second = (create(tmp_path, pretrained=None) for _ in range(2))
    assert (first.depth, first.width, first.embed_dim) == (3, 128, EMBED)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_files_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    write_albef(tmp_path)
    file = tmp_path / "ALBEF.pth"
    stored = torch.load(file, weights_only=True)
    with pytest.raises(ValueError, match="image_size must be a multiple of 8, got 30"):
        create(tmp_path, image_size=30)
    del stored["model"]["vision_proj.bias"]
    torch.save(stored, file)
    with pytest.raises(ValueError, match=r"could not be loaded: it lacks vision_proj\.bias"):
        create(tmp_path)
    torch.save({"model": {"weight": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match=r"checkpoint of ALBEF, got a file without visual_encoder\.pos_embed"):
        create(tmp_path)
    file.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="could not be loaded"):
        create(tmp_path)
    with pytest.raises(ValueError, match=r"has no files of a tokenizer: save .*'bert-base-uncased'"):
        load_tokenizer(str(tmp_path / "empty"), 30, hint=TOKENIZER_HINT)(["a"])
