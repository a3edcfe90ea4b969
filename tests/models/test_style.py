"""Style extractors: unit vectors of frozen networks, on images of the right size and normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models.vgg import cfgs, make_layers
from transformers import (
    ViTConfig,
    ViTModel,
)

from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.style import StyleExtractor, create_style
from tests.support.dino import SIZES, write_dino
from tests.support.small_clip import IMAGE_SIZE, small_config
from tests.support.tolerance import relative_error

FIRST_RELUS = (1, 6, 11, 18, 25)  # layers of VGG-16 after conv1_1, conv2_1, conv3_1, conv4_1 and conv5_1


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE)


def style_of(tmp_path: Path, **fields: Any) -> StyleExtractor:
    config = small_config(tmp_path, **fields)
    return create_style(config, create_backbone(config))


@pytest.mark.parametrize(("style", "dim"), [("dinov2", 768), ("clip", 24), ("vgg", 680)])
def test_styles_are_unit_vectors_of_frozen_networks(tmp_path: Path, style: str, dim: int) -> None:
    extractor = style_of(tmp_path, style=style, style_pretrained=None).train()
    images = images_of(2).requires_grad_()
    z = extractor(images)
    assert z.shape == (2, dim) == (2, extractor.dim)
    assert torch.allclose(z.norm(dim=-1), torch.ones(2), atol=1e-5)
    assert not z.requires_grad
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert not any(module.training for module in extractor.modules())
    assert relative_error(z[:1], z[1:]) > 1e-3
    assert extractor(images_of(0)).shape == (0, dim)


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_is_its_class_token_after_the_last_norm(tmp_path: Path, registers: int) -> None:
    network = write_dino(tmp_path / "dino", registers)
    extractor = style_of(tmp_path, style="dinov2", style_pretrained=str(tmp_path / "dino"))
    images = images_of(2)
    with torch.no_grad():
        seen = F.interpolate(images, (42, 42), mode="bicubic", antialias=True)
        truth = F.normalize(network(pixel_values=seen).pooler_output, dim=-1)
    assert relative_error(extractor(images), truth) < 1e-5


def test_own_normalisation_gives_the_extractor_imagenets_statistics(tmp_path: Path) -> None:
    network = write_dino(tmp_path / "dino")
    fields = {"style": "dinov2", "style_pretrained": str(tmp_path / "dino"), "style_normalization": "own"}
    config = small_config(tmp_path, **fields)
    backbone = create_backbone(config)
    pixels = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)

    def normalised(mean: Any, std: Any) -> Tensor:
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    with torch.no_grad():
        seen = normalised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        seen = F.interpolate(seen, (42, 42), mode="bicubic", antialias=True)
        truth = F.normalize(network(pixel_values=seen).pooler_output, dim=-1)
    images = normalised(backbone.normalise.mean, backbone.normalise.std)
    assert relative_error(create_style(config, backbone)(images), truth) < 1e-5
    as_the_backbone = style_of(tmp_path, **{**fields, "style_normalization": "backbone"})
    assert relative_error(as_the_backbone(images), truth) > 1e-4


def test_clip_style_is_the_embedding_of_open_clip_before_and_after_training(tmp_path: Path) -> None:
    model, images = Hystar(small_config(tmp_path)), images_of(3)
    clip = open_clip.create_model(model.config.backbone.removeprefix("open_clip:")).eval()
    truth = F.normalize(clip.encode_image(images), dim=-1)
    assert relative_error(model.style(images), truth) < 1e-5
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter))
    assert relative_error(model.style(images), truth) < 1e-5
    assert relative_error(model.merge_static_().style(images), truth) < 1e-5


def test_prefix_style_runs_every_block_once_and_has_no_static_offsets_before_the_first(tmp_path: Path) -> None:
    model, images = Hystar(small_config(tmp_path, style="prefix", blocks=(2, 3))), images_of(2)
    entered: list[int] = []
    for number, block in enumerate(model.backbone.blocks, start=1):
        block.get_submodule("mlp").register_forward_pre_hook(lambda *_, number=number: entered.append(number))
    model.encode_image(images)
    assert entered == list(range(1, model.backbone.depth + 1))
    blocks = {int(name.split(".")[5]) for name, _ in model.static_parameters()}
    assert blocks == set(range(1, model.backbone.depth)), "these numbers begin with 0"
    assert model.encode_image(images_of(0)).shape == (0, 24)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_prefix_style_is_statistics_of_the_tokens_that_enter_the_first_modulated_block(
    tmp_path: Path, first: int
) -> None:
    model, images = Hystar(small_config(tmp_path, style="prefix", blocks=(first,))), images_of(3)
    visual = open_clip.create_model(model.config.backbone.removeprefix("open_clip:")).eval().visual
    entering: list[Tensor] = []
    visual.transformer.resblocks[first - 1].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        visual(images)
        parts = [entering[0][:, 0], entering[0][:, 1:].mean(1), entering[0][:, 1:].std(1, correction=0)]
        scaled = [
            (part - part.mean(1, keepdim=True)) / (part.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
            for part in parts
        ]
        truth = F.normalize(torch.cat(scaled, dim=1), dim=-1)
        assert model.style(images).shape == (3, 3 * model.backbone.width)
        assert relative_error(model.style(images), truth) < 1e-5
        for parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter))
        assert relative_error(model.style(images), truth) < 1e-5


def test_prefix_style_depends_less_on_positions_than_on_colours(tmp_path: Path) -> None:
    model, images = Hystar(small_config(tmp_path, style="prefix", blocks=(1,))), images_of(4)
    patch = model.backbone.get_submodule("clip.visual.conv1").kernel_size[0]  # type: ignore[index]
    moved, inverted = images.roll(patch, dims=-1), -images
    z = model.style(images)
    assert relative_error(model.style(moved), z) < 0.5 * relative_error(model.style(inverted), z)


def test_vgg_reads_a_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(5)
    features = make_layers(cfgs["D"])
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "vgg.pt")
    extractor = style_of(tmp_path, style="vgg", style_pretrained=str(tmp_path / "vgg.pt"))
    images = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        seen = F.interpolate(images, (224, 224), mode="bicubic", antialias=True)
        parts, x = [], seen
        for place, layer in enumerate(features):
            x = layer(x)
            if place in FIRST_RELUS:
                mix = extractor.get_buffer(f"mix{place}").double()
                assert torch.equal(mix.abs(), torch.full_like(mix, x.shape[1] ** -0.5).float().double())
                flat = x[0].double().flatten(1)
                part = (mix @ (flat @ flat.T / flat.shape[1]) @ mix.T)[*torch.triu_indices(16, 16)]
                parts.append((part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt())
        truth = F.normalize(torch.cat(parts), dim=-1)
    assert len(parts) == 5
    assert relative_error(extractor(images)[0].double(), truth) < 1e-4


def test_vgg_has_no_default_weights(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r'style_pretrained must be .* with style="vgg", got the default .facebook/dinov2-base'
    ):
        style_of(tmp_path, style="vgg")


@pytest.mark.parametrize(("style", "pretrained"), [("dinov2", "/no/such/folder"), ("vgg", "NO_SUCH_WEIGHTS")])
def test_missing_weights_are_named(tmp_path: Path, style: str, pretrained: str) -> None:
    with pytest.raises(ValueError, match=f"style_pretrained='{pretrained}' .* style='{style}'"):
        style_of(tmp_path, style=style, style_pretrained=pretrained)


def test_a_network_that_is_not_dinov2_is_rejected(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**{**SIZES, "intermediate_size": 32})).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"style_pretrained='.*vit' .*its type must be dinov2 or .*, got 'vit'"):
        style_of(tmp_path, style="dinov2", style_pretrained=str(tmp_path / "vit"))


def test_a_dinov2_with_missing_weights_is_rejected(tmp_path: Path) -> None:
    write_dino(tmp_path / "dino")
    file = tmp_path / "dino" / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layer.1.attention" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"style_pretrained='.*dino' .*its weights lack .*layer\.1\.attention"):
        style_of(tmp_path, style="dinov2", style_pretrained=str(tmp_path / "dino"))


def test_the_state_dict_of_another_network_is_rejected(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pt")
    with pytest.raises(ValueError, match=r"style_pretrained='.*vgg\.pt'"):
        style_of(tmp_path, style="vgg", style_pretrained=str(tmp_path / "vgg.pt"))


def test_hystar_works_with_every_extractor(tmp_path: Path) -> None:
    write_dino(tmp_path / "dino")
    images = images_of(2)
    for style, pretrained in (("dinov2", str(tmp_path / "dino")), ("clip", None), ("prefix", None), ("vgg", None)):
        model = Hystar(small_config(tmp_path, style=style, style_pretrained=pretrained, blocks=(2,)))
        assert model.encode_image(images).shape == (2, 24)
        assert torch.equal(model.encode_image(images), model.encode_image(images, model.style(images)))
