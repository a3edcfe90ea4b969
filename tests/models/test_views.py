"""Outputs of all encoders are no views, neither of their inputs nor of intermediate tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hystar_fast.models
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.eva import BiasedAttention, EvaTower, RotaryAttention
from hystar_fast.models.backbones.open_clip import OpenClipBackbone
from hystar_fast.models.backbones.tower import FrozenTower, TowerBackbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.style import BackboneStyle, DinoStyle, PrefixStyle, StyleExtractor, VggStyle
from tests.support.modules import assert_owns_its_memory, modules_with_forward
from tests.support.small_backbones import ALL_WRITERS, Small
from tests.support.small_clip import IMAGE_SIZE, small_config

EXTRACTORS: dict[type[StyleExtractor], str] = {
    BackboneStyle: "clip",
    PrefixStyle: "prefix",
    DinoStyle: "dinov2",
    VggStyle: "vgg",
}
DESIGNS = ("original", "reversed", "dynamic-all")


@pytest.fixture(scope="module", params=ALL_WRITERS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return ALL_WRITERS[request.param](tmp_path_factory.mktemp("backbone"))


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE)


def outputs(backbone: TowerBackbone, images: Tensor) -> Iterator[Tensor]:
    """Yield the outputs of every encoder of a backbone, before and after injection."""
    tokens = backbone.tokenizer(["a red cat", "cat"])
    frozen = backbone.frozen_image_encoder()
    assert isinstance(frozen, FrozenTower)
    for injected in (False, True):
        for number in range(1, backbone.depth + 1) if injected else ():
            backbone.inject_dynamic(number, None)
            backbone.inject_static(number, None)
        offsets = {1: torch.zeros(len(images), backbone.width)} if injected else None
        yield backbone.encode_image(images, offsets)
        yield backbone.encode_text(tokens)
        yield backbone.prefix(images, 0)
        yield backbone.prefix(images, 1)
        yield frozen(images)
    if isinstance(backbone.tower, EvaTower):
        attention = backbone.blocks[0].attn
        assert isinstance(attention, (RotaryAttention, BiasedAttention))
        yield attention(backbone.prefix(images, 0))


def test_every_module_with_a_forward_is_called_here() -> None:
    called = {FrozenTower, *EXTRACTORS, RotaryAttention, BiasedAttention}
    assert modules_with_forward(hystar_fast.models) == called


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_no_output_of_a_backbone_is_a_view(small: Small, gradients: bool, training: bool) -> None:
    backbone = create_backbone(HystarConfig(backbone=small.backbone, pretrained=small.pretrained)).train(training)
    images = images_of(2).requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        for y in outputs(backbone, images):
            assert_owns_its_memory(y, images, backbone)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", EXTRACTORS, ids=lambda kind: kind.__name__)
def test_no_style_is_a_view(kind: type[StyleExtractor], training: bool, tmp_path: Path) -> None:
    config = small_config(tmp_path, style=EXTRACTORS[kind], style_pretrained=None)
    model = Hystar(config).train(training)
    assert type(model.extractor) is kind
    images = images_of(2)
    assert_owns_its_memory(model.style(images), images, model)
    assert_owns_its_memory(model.style(images[:0]), images, model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("design", DESIGNS)
def test_no_embedding_of_hystar_is_a_view(small: Small, design: str, training: bool) -> None:
    config = HystarConfig(
        backbone=small.backbone, pretrained=small.pretrained, style="clip", blocks=(2, 3), design=design
    )
    model, images = Hystar(config).train(training), images_of(2)
    for y in (
        model.encode_image(images),
        model.encode_image(images, torch.zeros(small.embed_dim)),
        model.encode_image(images[:0]),
        model.encode_text(model.tokenizer(["a red cat"])),
        model.merge_static_().encode_image(images),
    ):
        assert_owns_its_memory(y, images, model)


def test_a_selected_token_is_copied(tmp_path: Path) -> None:
    """Image tower and text encoder of open_clip without a projection after the token that they select."""
    backbone: Any = create_backbone(small_config(tmp_path))
    assert isinstance(backbone, OpenClipBackbone)
    backbone.visual.proj = None
    images, tokens = images_of(2), torch.randn(2, 3, 24)
    assert backbone.visual(images)._is_view()
    assert torch.equal(backbone.encode_image(images), backbone.visual(images))
    assert_owns_its_memory(backbone.encode_image(images), images, backbone)
    backbone.clip.encode_text = lambda _: tokens[:, 0]
    assert_owns_its_memory(backbone.encode_text(torch.zeros(2, 3, dtype=torch.int64)), tokens)
