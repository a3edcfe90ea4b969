"""Designs of Table 6 and hypernetworks of Table 9 on every kind of backbone: effects and trained parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from tests.support.small_backbones import ALL_WRITERS, Small
from tests.support.small_clip import IMAGE_SIZE
from tests.support.tolerance import relative_error

DESIGNS = ("original", "reversed", "dynamic-all")


@pytest.fixture(scope="module", params=ALL_WRITERS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return ALL_WRITERS[request.param](tmp_path_factory.mktemp("backbone"))


def model_of(small: Small, offsets: float = 0.1, **fields: Any) -> Hystar:
    """Create a Hystar with blocks 2 and 3 modulated and random offsets of deviation `offsets`."""
    torch.manual_seed(1)
    settings = {"backbone": small.backbone, "pretrained": small.pretrained, "style": "clip", "blocks": (2, 3), **fields}
    model = Hystar(HystarConfig(**settings))
    with torch.no_grad():
        last = [p for network in model.hypernetworks.values() for p in network.layers[-1].parameters()]
        for parameter in (*dict(model.static_parameters()).values(), *last):
            parameter.normal_(std=offsets) if offsets else parameter.zero_()
    return model


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE)


def gradients(model: Hystar, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model.encode_image(images).square().cumsum(1).sum().backward()
    named = dict((*model.static_parameters(), *model.dynamic_parameters()))
    found = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    assert found.keys() == named.keys()
    assert not [name for name, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
    return found


@pytest.mark.parametrize("design", DESIGNS)
def test_zero_offsets_change_nothing_and_others_do(small: Small, design: str) -> None:
    images = images_of(3)
    plain = F.normalize(model_of(small, blocks=(), static=False).backbone.encode_image(images), dim=-1)
    assert relative_error(model_of(small, offsets=0.0, design=design).encode_image(images), plain) < 1e-5
    model = model_of(small, design=design)
    found, z = model.encode_image(images), model.style(images)
    assert relative_error(found, plain) > 1e-3
    assert relative_error(model.encode_image(images, z.roll(1, 0)), found) > 1e-4
    one_by_one = torch.cat([model.encode_image(images[i : i + 1]) for i in range(3)])
    assert relative_error(found, one_by_one) < 1e-4


@pytest.mark.parametrize("design", DESIGNS)
def test_number_and_gradients_of_the_trained_parameters(small: Small, design: str) -> None:
    model = model_of(small, design=design)
    width, depth, counts = model.backbone.width, model.backbone.depth, model.parameter_counts()
    z = model.extractor.dim if model.extractor is not None else 0
    hypernetwork = z * 2 * width + 2 * width + 2 * width * width + width
    assert counts["dynamic"] == {"original": 2, "reversed": 2, "dynamic-all": 4}[design] * hypernetwork
    assert counts["static"] == {"original": 2 * depth * width, "reversed": depth * width, "dynamic-all": 0}[design]
    adapter = {id(parameter) for _, parameter in (*model.static_parameters(), *model.dynamic_parameters())}
    assert not [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in adapter]
    images = images_of(3)
    expected = gradients(model, images)
    assert all(bool(gradient.any()) for gradient in expected.values())
    model.set_gradient_checkpointing()
    for name, gradient in gradients(model, images).items():
        assert relative_error(gradient, expected[name]) < 1e-5, name


def last_layers_and_static_offsets(model: Hystar) -> list[list[Tensor]]:
    """Return the parameters of the last layer of each hypernetwork, and then all static offsets."""
    networks = [list(network.layers[-1].parameters()) for network in model.hypernetworks.values()]
    static = [parameter for _, parameter in model.static_parameters()]
    return [*networks, static] if static else networks


@pytest.mark.parametrize("form", ["autocast", "weights"])
@pytest.mark.parametrize("design", DESIGNS)
def test_no_offset_is_lost_in_bfloat16(small: Small, design: str, form: str) -> None:
    """The error of bfloat16 is below a third of the error without any one offset, and gradients agree."""
    model, images = model_of(small, design=design, offsets=0.5), images_of(3)
    z, expected_gradients = model.style(images), gradients(model, images)
    with torch.no_grad():
        expected = model.encode_image(images, z)
        without = []
        for parameters in last_layers_and_static_offsets(model):
            kept = [parameter.clone() for parameter in parameters]
            for parameter in parameters:
                parameter.zero_()
            without.append(model.encode_image(images, z))
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        assert torch.equal(model.encode_image(images, z), expected)
    if form == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
        found = model.encode_image(images, z)
        found_gradients = gradients(model, images)
    error = relative_error(found, expected)
    assert error < 0.1
    for embedded in without:
        assert relative_error(embedded, expected) > 3 * error
    for name, gradient in found_gradients.items():
        assert F.cosine_similarity(gradient.float().flatten(), expected_gradients[name].flatten(), dim=0) > 0.8, name


@pytest.mark.parametrize("design", ["reversed", "dynamic-all"])
def test_dynamic_offsets_equal_the_same_static_offsets(small: Small, design: str) -> None:
    """The offsets of one image are copied into the static offsets, and the hypernetworks are set to zero."""
    model, image = model_of(small, design=design), images_of(1)
    z = model.style(image)
    found = model.encode_image(image, z)
    blocks, tower = model.backbone.blocks, model.backbone.tower  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, network in model.hypernetworks.items():
            block = blocks[int(name.removeprefix("mlp")) - 1]
            mlp = block.get_submodule("mlp")
            layer = tower.parts_of(mlp)[0][1]
            if not name.startswith("mlp"):
                layer = block.get_submodule(tower.attention_at).in_proj
            assert isinstance(layer, FastSVDLinear) and not layer.delta_s_static.requires_grad
            layer.delta_s_static.copy_(network(z)[0])
            for parameter in network.parameters():
                parameter.zero_()
    assert relative_error(model.encode_image(image, z), found) < 1e-4


@pytest.mark.parametrize("design", ["reversed", "dynamic-all"])
def test_saving_and_merging_keep_the_embeddings(small: Small, design: str, tmp_path: Path) -> None:
    model, images = model_of(small, design=design), images_of(2)
    found = model.encode_image(images)
    model.save_pretrained(tmp_path)
    assert relative_error(Hystar.from_pretrained(tmp_path).encode_image(images), found) < 1e-6
    assert relative_error(model.merge_static_().encode_image(images), found) < 1e-4
    assert not list(model.static_parameters())


@pytest.mark.parametrize(
    ("width", "depth", "millions"), [(1024, 2, 1.8), (2048, 2, 3.7), (4096, 2, 7.3), (None, 1, 0.8), (2048, 3, 7.9)]
)
def test_the_hypernetworks_of_table_9(width: int | None, depth: int, millions: float) -> None:
    """Count the hypernetwork of one block of ViT-L/14 on the meta device."""
    sizes: dict[str, Any] = {"hypernetwork_width": width, "hypernetwork_depth": depth}
    with torch.device("meta"):
        model = Hystar(HystarConfig(pretrained=None, style_pretrained=None, blocks=(4,), **sizes))
    assert f"{model.parameter_counts()['dynamic'] / 1e6:.1f}" == f"{millions:.1f}"


def test_width_and_depth_reach_every_hypernetwork() -> None:
    fields = {"backbone": "tiny", "pretrained": None, "style": "clip", "blocks": (2, 4), "static": False}
    model = Hystar(HystarConfig(**fields, hypernetwork_width=10, hypernetwork_depth=3, design="dynamic-all"))
    assert [(n.hidden, n.depth) for n in model.hypernetworks.values()] == [(10, 3)] * 4
    assert list(model.hypernetworks) == ["2", "mlp2", "4", "mlp4"]


def test_bad_designs() -> None:
    with pytest.raises(ValueError, match="design must be one of 'original', 'reversed', 'dynamic-all', got 'inverse'"):
        HystarConfig(design="inverse")
    with pytest.raises(ValueError, match="hypernetwork_width must be at least 1, got 0"):
        HystarConfig(hypernetwork_width=0)
    with pytest.raises(ValueError, match="hypernetwork_width must be at most 2147483647, got 10000"):
        HystarConfig(hypernetwork_width=10**30)
    with pytest.raises(ValueError, match="hypernetwork_depth must be at least 1, got 0"):
        HystarConfig(hypernetwork_depth=0)
