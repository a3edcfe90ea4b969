"""The baselines on every kind of backbone: where they start, what is trained, and what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from timm.layers import LayerNorm as TimmLayerNorm
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.suite import create_method
from hystar_fast.models.config import HystarConfig
from tests.support.small_backbones import POSITIONED, WRITERS, Images, Small
from tests.support.small_clip import IMAGE_SIZE
from tests.support.tolerance import relative_error

AROUND = {  # norms and patch embeddings before and after the blocks, where projections are layers of their own
    "open_clip siglip": 2,
    "transformers clip": 3,
    "transformers siglip": 2,
    "transformers siglip2": 2,
    "transformers blip": 2,
    "albef": 2,
}


@pytest.fixture(scope="module", params=WRITERS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return WRITERS[request.param](tmp_path_factory.mktemp("backbone"))


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE)


def disturbed(name: str, small: Small) -> Any:
    """Create a method with trained parameters moved away from their initial values."""
    torch.manual_seed(2)
    config = HystarConfig(backbone=small.backbone, pretrained=small.pretrained)
    method = create_method(name, config, parameters=3000)
    with torch.no_grad():
        for parameter in method.parameter_groups()[name]:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return method


@pytest.mark.parametrize("name", BASELINES)
def test_every_trained_parameter_has_a_gradient_on_every_backbone(small: Small, name: str) -> None:
    config = HystarConfig(backbone=small.backbone, pretrained=small.pretrained)
    method, pixels = create_method(name, config), torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    plain = create_method("frozen", config).encode_image(pixels)
    assert (relative_error(method.encode_image(pixels), plain) < 1e-5) == (name not in ("vpt", "freestyle"))
    trained = method.parameter_groups()[name]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    found = method.encode_image(pixels)
    assert relative_error(found, plain) > 1e-3
    (found * torch.randn_like(found)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert sum(bool(p.grad.any()) for p in trained) >= len(trained) - 1  # a bias of the keys does not change attention


def named_scaled(method: Any) -> Iterator[tuple[str, Any]]:
    """Yield the layers that the method rescales, or adds to, by their names in the library's model."""
    for name, layer in method.model.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            yield name.partition(".")[2], layer


def scaled_layers(method: Any, truth: Images) -> Iterator[tuple[nn.Module, Any]]:
    """Yield the layers of the library's model that the method rescales, each with the layer that holds the scales."""
    for name, layer in named_scaled(method):
        yield truth.model.get_submodule(name), layer


@pytest.mark.parametrize(("kind", "around"), AROUND.items())
def test_ssf_scales_and_shifts_the_outputs_of_the_librarys_layers(kind: str, around: int, tmp_path: Path) -> None:
    small = WRITERS[kind](tmp_path)
    method, truth, images = disturbed("ssf", small), Images(small), images_of(3)
    plain, layers = truth(images), list(scaled_layers(method, truth))
    split = any(name.endswith("q_proj") for name, _ in method.model.blocks.named_modules())
    assert {type(layer) for layer, _ in layers} <= {nn.LayerNorm, nn.Linear, nn.Conv2d, TimmLayerNorm}
    assert len(layers) == around + small.depth * (8 if split else 6)
    for layer, own in layers:
        found = own.parametrizations
        scale, shift = found.weight[0].scale, found.bias[0].shift if "bias" in found else own.bias

        def change(_: Any, __: Any, x: Tensor, scale: Tensor = scale, shift: Tensor = shift) -> Tensor:
            at = (-1, 1, 1) if x.ndim == 4 else (-1,)
            return x * scale.view(at) + shift.view(at)

        layer.register_forward_hook(change)
    assert relative_error(truth(images), plain) > 1e-2
    assert relative_error(method.model.encode_image(images), truth(images)) < 1e-5


@pytest.mark.parametrize("kind", AROUND)
def test_ia3_scales_keys_values_and_the_inputs_of_the_last_mlp_layer(kind: str, tmp_path: Path) -> None:
    small = WRITERS[kind](tmp_path)
    method, truth, images = disturbed("ia3", small), Images(small), images_of(3)
    plain, layers = truth(images), list(scaled_layers(method, truth))
    for layer, own in layers:
        found = own.parametrizations.weight[0]
        if hasattr(found, "keys"):
            scale = torch.cat([torch.ones_like(found.keys), found.keys, found.values])
            layer.register_forward_hook(lambda _, __, x, scale=scale: x * scale)
        elif layer in [getattr(block.mlp, "fc2", None) for block in truth.modules() if hasattr(block, "mlp")]:
            layer.register_forward_pre_hook(lambda _, x, scale=found.scale: (x[0] * scale,))
        else:
            layer.register_forward_hook(lambda _, __, x, scale=found.scale: x * scale)
    trained = method.parameter_groups()["ia3"]
    assert len(trained) == 3 * small.depth
    hidden = sum(block.get_submodule("mlp.fc1").out_features for block in method.model.blocks)
    assert sum(scale.numel() for scale in trained) == 2 * small.width * small.depth + hidden
    assert relative_error(truth(images), plain) > 1e-2
    assert relative_error(method.model.encode_image(images), truth(images)) < 1e-5


@pytest.mark.parametrize("name", ["vpt", "freestyle"])
def test_prompts_follow_the_class_token_and_are_removed_before_pooling(small: Small, name: str) -> None:
    """With blocks that change no token, the prompts have no effect on the embedding."""
    config = HystarConfig(backbone=small.backbone, pretrained=small.pretrained)
    method, images = create_method(name, config), images_of(2)
    backbone = method.model.backbone  # type: ignore[attr-defined]
    seen: list[Tensor] = []

    def identity(_: Any, x: Tensor, *__: Any) -> Tensor:
        seen.append(x)
        return x

    backbone.tower.run_block = identity
    assert torch.equal(method.model.encode_image(images), backbone.encode_image(images))  # type: ignore[attr-defined]
    leading, tokens = backbone.leading_tokens[1], backbone.tower.embed(backbone.visual, images)
    extra = seen[0].shape[1] - tokens.shape[1]
    assert extra > 0
    assert torch.equal(seen[0][:, :leading], tokens[:, :leading])
    assert torch.equal(seen[0][:, leading + extra :], tokens[:, leading:])


@pytest.mark.parametrize("kind", POSITIONED)
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_on_towers_with_positions_in_their_attention(name: str, kind: str, tmp_path: Path) -> None:
    """Two insert tokens and two scale the bias of a packed projection, which BEiT and EVA keep beside it."""
    small = POSITIONED[kind](tmp_path)
    if name in ("vpt", "freestyle"):
        with pytest.raises(ValueError, match=r"positions in the tokens .* \(vpt, freestyle\), got .* in its attention"):
            create_method(name, HystarConfig(backbone=small.backbone, pretrained=small.pretrained))
    elif name in ("ssf", "ia3") and kind != "open_clip eva, rotary":
        with pytest.raises(ValueError, match="must keep the bias of its attention in qkv, got q_bias and v_bias"):
            create_method(name, HystarConfig(backbone=small.backbone, pretrained=small.pretrained))
    else:
        test_every_trained_parameter_has_a_gradient_on_every_backbone(small, name)


def test_lora_starts_as_the_frozen_model_and_trains_every_matrix_of_the_blocks(small: Small) -> None:
    config = HystarConfig(backbone=small.backbone, pretrained=small.pretrained)
    lora, pixels = create_method("lora", config, parameters=1), torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert relative_error(lora.encode_image(pixels), create_method("frozen", config).encode_image(pixels)) < 1e-5
    loss = lora.loss(lora.encode_image(pixels), lora.encode_image(pixels.flip(0)))
    loss.backward()
    trained = lora.parameter_groups()["lora"]
    assert len(trained) in (2 * 4 * small.depth, 2 * 6 * small.depth)  # qkv packed or split, output, two of the MLP
    assert all(b.grad is not None and b.grad.any() for b in trained[1::2])


@pytest.mark.parametrize("kind", ["transformers clip", "transformers blip", "open_clip siglip", "albef"])
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_lora_and_ia3_equal_those_of_peft(name: str, kind: str, tmp_path: Path) -> None:
    """On backbones whose layers are all linear, where peft applies its update once."""
    small = WRITERS[kind](tmp_path)
    method, truth, images = disturbed(name, small), Images(small), images_of(3)
    plain = truth(images)
    layers = {where: own for where, own in named_scaled(method) if isinstance(own, nn.Linear)}
    if name == "lora":
        config: Any = peft.LoraConfig(r=method.rank, lora_alpha=method.rank, target_modules=list(layers))
    else:
        feedforward = [where for where in layers if where.endswith("fc2")]
        config = peft.IA3Config(target_modules=list(layers), feedforward_modules=feedforward)
    peft.inject_adapter_in_model(config, truth.model)
    with torch.no_grad():
        for where, own in layers.items():
            found, theirs = own.parametrizations.weight[0], truth.model.get_submodule(where)
            if name == "lora":
                theirs.lora_A["default"].weight.copy_(found.a)
                theirs.lora_B["default"].weight.copy_(found.b)
                continue
            if hasattr(found, "keys"):
                scale = torch.cat([torch.ones_like(found.keys), found.keys, found.values])
            else:
                scale = found.scale
            theirs.ia3_l["default"].copy_(scale.view_as(theirs.ia3_l["default"]))
    assert relative_error(truth(images), plain) > 1e-2
    assert relative_error(method.model.encode_image(images), truth(images)) < 1e-5
