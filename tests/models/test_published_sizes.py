"""Published models at their sizes, on the meta device: depths, parameters, activations, and those of Hystar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from transformers import BlipConfig

from hystar_fast.models.backbones.albef import load_albef
from hystar_fast.models.backbones.open_clip import load_open_clip
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.backbones.transformers import load_transformers
from hystar_fast.models.config import HystarConfig, resolve_blocks
from hystar_fast.models.hystar import Hystar

B32, B16, L14, L336 = 151_277_313, 149_620_737, 427_616_513, 427_944_193
BLOCKS = {12: (2, 4, 6), 24: (4, 7, 10, 13)}


def blip(folder: Path) -> TowerBackbone:
    BlipConfig().save_pretrained(folder)
    return load_transformers(str(folder), None)


BACKBONES: dict[str, tuple[Callable[[Path], TowerBackbone], int, int, int, int, int]] = {
    # parameters, blocks, width, embedding, pixels
    "ViT-B-32": (lambda _: load_open_clip("ViT-B-32", None), B32, 12, 768, 512, 224),
    "ViT-B-32-quickgelu": (lambda _: load_open_clip("ViT-B-32-quickgelu", None), B32, 12, 768, 512, 224),
    "ViT-B-16": (lambda _: load_open_clip("ViT-B-16", None), B16, 12, 768, 512, 224),
    "ViT-B-16-quickgelu": (lambda _: load_open_clip("ViT-B-16-quickgelu", None), B16, 12, 768, 512, 224),
    "ViT-L-14": (lambda _: load_open_clip("ViT-L-14", None), L14, 24, 1024, 768, 224),
    "ViT-L-14-quickgelu": (lambda _: load_open_clip("ViT-L-14-quickgelu", None), L14, 24, 1024, 768, 224),
    "ViT-L-14-336": (lambda _: load_open_clip("ViT-L-14-336", None), L336, 24, 1024, 768, 336),
    "ViT-L/14@336px": (lambda _: load_open_clip("ViT-L/14@336px", None), L336, 24, 1024, 768, 336),
    "ViT-L-14@336-quickgelu": (lambda _: load_open_clip("ViT-L-14@336-quickgelu", None), L336, 24, 1024, 768, 336),
    "BLIP base": (blip, 223_744_258, 12, 768, 256, 384),
    "ALBEF": (lambda folder: load_albef(str(folder / "ALBEF.pth"), None, 384), 152_848_640, 12, 768, 256, 384),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_published_backbone_has_its_size_and_its_blocks(name: str, tmp_path: Path) -> None:
    load, parameters, depth, width, embed_dim, pixels = BACKBONES[name]
    with torch.device("meta"):
        backbone = load(tmp_path)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert (backbone.depth, backbone.width, backbone.embed_dim) == (depth, width, embed_dim)
    assert backbone.image_size == (pixels, pixels) and backbone.leading_tokens == (True, 1)
    assert resolve_blocks(None, backbone.depth, name) == BLOCKS[depth]
    quick = [isinstance(part, open_clip.transformer.QuickGELU) for part in backbone.visual.modules()]
    assert sum(quick) == (depth if "quickgelu" in name else 0)


@pytest.mark.parametrize(
    ("size", "parameters", "dim"), [("small", 22_056_576, 384), ("base", 86_580_480, 768), ("large", 304_368_640, 1024)]
)
def test_hystar_on_vit_l_14_with_a_published_dinov2(size: str, parameters: int, dim: int) -> None:
    config = HystarConfig(pretrained=None, style_pretrained=f"facebook/dinov2-{size}")
    with torch.device("meta"):
        model = Hystar(config)
    assert model.extractor is not None and model.extractor.dim == dim
    assert sum(parameter.numel() for parameter in model.extractor.parameters()) == parameters
    assert sorted(map(int, model.hypernetworks)) == [4, 7, 10, 13]
    dynamic = 4 * ((dim + 1) * 2048 + (2048 + 1) * 1024)
    assert model.parameter_counts() == {"backbone": L14, "static": 24 * 2 * 1024, "dynamic": dynamic}
