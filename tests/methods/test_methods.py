"""The methods behind their interface: initial values, trained parameters, and parity of the naive path."""

from __future__ import annotations

import copy
from dataclasses import replace

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hystar_fast.experiments.learning_rates import TINY_GRID
from hystar_fast.methods.frozen import Frozen
from hystar_fast.methods.hog import HOG
from hystar_fast.methods.hystar_method import HystarMethod, create_criterion
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.lora import LoRA
from hystar_fast.methods.naive import NaiveLoss, measure_step, naive_path
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.static_only import StaticOnly
from hystar_fast.methods.suite import (
    DEMO_METHODS,
    DEMO_TRAINED,
    create_hystar,
    create_method,
    hystar_size,
    tiny_config,
)
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig
from tests.support.dino import write_dino
from tests.support.small_clip import small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HystarConfig:
    return small_config(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 32, 32)


def build(name: str, config: HystarConfig) -> Method:
    return create_method(name, config, parameters=3000)


@pytest.mark.parametrize("name", DEMO_METHODS)
def test_every_method_returns_unit_vectors_that_depend_on_one_image_only(name, config, images):
    method = build(name, config)
    method.train(False)
    found = method.encode_image(images)
    assert found.shape[0] == 5
    assert torch.allclose(found.norm(dim=-1), torch.ones(5), atol=1e-5)
    assert torch.allclose(method.encode_image(images[2:3]), found[2:3], atol=1e-5)


@pytest.mark.parametrize("name", DEMO_METHODS)
def test_every_method_has_its_name_texts_and_parameter_groups(name, config):
    method = build(name, config)
    assert method.name == name
    texts = method.encode_text(["a red heart", "a dog"])
    groups = method.parameter_groups()
    if name in ("pixels", "hog"):
        assert texts is None
    else:
        assert texts is not None
        assert texts.shape[0] == 2
        assert not texts.requires_grad
    assert set(groups) == set(TINY_GRID[name][0]) if name in DEMO_TRAINED else groups == {}
    if name not in DEMO_TRAINED:
        with pytest.raises(TypeError, match=f"method must have trainable parameters, got '{name}'"):
            method.loss(torch.eye(2), torch.eye(2))


@pytest.mark.parametrize("name", ["static", "lora"])
def test_static_and_lora_start_as_the_frozen_model(name, config, images):
    frozen, method = build("frozen", config), build(name, config)
    assert torch.allclose(method.encode_image(images), frozen.encode_image(images), atol=1e-5)


@pytest.mark.parametrize("name", DEMO_TRAINED)
def test_a_step_moves_every_trained_parameter_and_nothing_else(name, config, images):
    method = build(name, config)
    module = method.modules[0]
    trained = {id(p) for group in method.parameter_groups().values() for p in group}
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    optimizer = torch.optim.SGD([p for g in method.parameter_groups().values() for p in g], lr=0.1)
    for _ in range(2):  # LoRA's A has a gradient only after B has moved from zero
        optimizer.zero_grad()
        found = method.encode_image(torch.cat([images, images.flip(-1)]))
        method.loss(found[:5], found[5:]).backward()
        optimizer.step()
    for key, parameter in module.named_parameters():
        moved = not torch.equal(parameter, before[key])
        assert moved == (id(parameter) in trained), key
        assert parameter.requires_grad == (id(parameter) in trained), key


def test_lora_has_the_requested_size_to_within_half_a_rank(config):
    per_rank = count_parameters(create_method("lora", config, parameters=1))["lora"]
    for wanted in (1, 2000, 5 * per_rank, 9 * per_rank + 7):
        method = create_method("lora", config, parameters=wanted)
        assert isinstance(method, LoRA)
        count = count_parameters(method)["lora"]
        assert count == per_rank * method.rank
        assert abs(count - wanted) <= per_rank / 2 or method.rank == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "tiny", "pretrained": "packaged", "blocks": None},
        {"blocks": ()},
        {"static": False, "hypernetwork_width": 5, "hypernetwork_depth": 3},
        {"design": "dynamic-all", "rank": 7},
        {"design": "reversed"},
        {"style": "prefix"},
        {"style": "vgg", "style_pretrained": None},
        {"style": "dinov2", "style_pretrained": None},
        {"style": "dinov2", "style_pretrained": "dino"},
    ],
)
def test_hystar_size_without_weights_equals_the_count_with_them(fields, tmp_path):
    if fields.get("style_pretrained"):
        write_dino(tmp_path / "dino")
        fields = {**fields, "style_pretrained": str(tmp_path / "dino")}
    counted = small_config(tmp_path, **fields)
    assert hystar_size(counted) == sum(count_parameters(create_hystar(counted)).values()) > 0


def test_hystar_size_reads_and_factors_no_weights(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read or factored")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", refuse)
    dynamic = 4 * ((768 + 1) * 2048 + (2048 + 1) * 1024)
    assert hystar_size(HystarConfig()) == dynamic + 24 * 2 * 1024
    large = replace(HystarConfig(), style_pretrained="facebook/dinov2-with-registers-large")
    assert hystar_size(large) == hystar_size(HystarConfig()) + 4 * 2048 * (1024 - 768)


def test_lora_equals_the_model_with_its_updates_folded_in(config, images):
    """Each update is applied exactly once, and the gradients are those of the folded weights."""
    method = create_method("lora", config, parameters=3000)
    frozen = create_method("frozen", config)
    assert isinstance(method, LoRA) and isinstance(frozen, Frozen)
    trained = method.parameter_groups()["lora"]  # a, b of one matrix after another
    for b in trained[1::2]:
        nn.init.normal_(b, std=0.1)
    leaves = [p.detach().clone().requires_grad_() for p in trained]
    folded, pairs = {}, iter(leaves)
    for i in range(4):
        block = f"clip.visual.transformer.resblocks.{i}."
        for name in ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"):
            a, b = next(pairs), next(pairs)
            folded[block + name] = frozen.model.get_parameter(block + name) + b @ a

    class Encode(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return F.normalize(self.model.encode_image(frozen.normalise(pixels)), dim=-1)

    changed = {f"model.{key}": value for key, value in folded.items()}
    expected_vectors = torch.func.functional_call(Encode(frozen.model), changed, (images,))
    found = method.encode_image(images)
    assert torch.allclose(found, expected_vectors, atol=1e-5)
    expected = torch.autograd.grad(expected_vectors.pow(3).sum(), leaves)
    actual = torch.autograd.grad(found.pow(3).sum(), trained)
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_the_demo_compares_adapters_of_equal_size():
    config = tiny_config(None)
    hystar = sum(count_parameters(create_hystar(config)).values())
    lora = sum(count_parameters(create_method("lora", config)).values())
    assert lora == pytest.approx(hystar, rel=0.02)


def test_static_has_the_static_parameters_of_hystar_and_takes_no_style(config, images):
    static, hystar = StaticOnly(config), create_hystar(config)
    assert count_parameters(static) == {"static": count_parameters(hystar)["static"]}
    assert static.style(images) is None


def test_the_style_of_hystar_does_not_change_in_training(config, images):
    method = create_hystar(config)
    z = method.style(images)
    assert z is not None
    assert torch.allclose(method.encode_image(images, z), method.encode_image(images), atol=1e-6)
    with torch.no_grad():
        for group in method.parameter_groups().values():
            for parameter in group:
                parameter.add_(0.1)
    again = method.style(images)
    assert again is not None
    assert torch.equal(again, z)


def test_the_seed_determines_the_initial_values(config):
    def drawn(name: str, seed: int) -> torch.Tensor:
        method = create_method(name, config, seed=seed, parameters=3000)
        return torch.cat([p.detach().flatten() for g in method.parameter_groups().values() for p in g])

    for name in ("hystar", "lora"):
        assert torch.equal(drawn(name, 1), drawn(name, 1))
        assert not torch.equal(drawn(name, 1), drawn(name, 2))


def test_groups_that_share_a_parameter_are_rejected():
    class Doubled(Pixels):
        def parameter_groups(self):
            parameter = torch.nn.Parameter(torch.zeros(2))
            return {"a": [parameter], "b": [parameter]}

    with pytest.raises(ValueError, match="must be disjoint"):
        count_parameters(Doubled())


def test_unknown_methods_and_bad_sizes_are_rejected(config):
    with pytest.raises(ValueError, match="name must be one of"):
        create_method("magic", config)
    with pytest.raises(ValueError, match="parameters or rank must be given, not both"):
        LoRA(create_backbone(config), create_criterion(config))
    with pytest.raises(ValueError, match="parameters must be at least 1, got 0"):
        create_method("lora", config, parameters=0)
    with pytest.raises(ValueError, match="side must be at least 1"):
        Pixels(0)


def test_pixels_ignore_brightness_and_hog_finds_a_recoloured_drawing():
    drawing = torch.ones(1, 3, 64, 64)
    drawing[:, :, 16:48, 20:30] = 0.0
    assert torch.allclose(Pixels().encode_image(drawing), Pixels().encode_image(drawing * 0.5 + 0.25), atol=1e-6)
    other = torch.rand(8, 3, 64, 64)
    red = drawing.clone()
    red[:, 1:, 16:48, 20:30] = 0.4
    described = HOG().encode_image(torch.cat([red, other]))
    assert (HOG().encode_image(drawing) @ described.T).argmax() == 0


@pytest.mark.parametrize("part", ["both", "static", "dynamic"])
def test_the_naive_path_computes_the_same_embeddings_and_gradients(config, images, part):
    blocks = () if part == "static" else config.blocks
    method = create_hystar(replace(config, blocks=blocks, static=part != "dynamic"))
    with torch.no_grad():
        for _, offsets in method.model.static_parameters():
            offsets.copy_(0.1 * torch.randn(offsets.shape))
    parameters = method.model.trainable_parameters()

    def gradients() -> list[torch.Tensor]:
        weights = torch.linspace(-1, 1, 5)[:, None]
        return [*torch.autograd.grad((method.encode_image(images) * weights).pow(3).sum(), parameters)]

    ours, embedded = gradients(), method.encode_image(images)
    classes = [type(module) for module in method.model.modules()]
    with naive_path(method.model):
        assert [type(module) for module in method.model.modules()] != classes
        naive, slow = gradients(), method.encode_image(images)
    assert [type(module) for module in method.model.modules()] == classes
    assert torch.allclose(embedded, slow, atol=2e-5)
    for a, b in zip(ours, naive, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6


def test_the_naive_path_runs_in_the_models_precision(config, images):
    model = create_method("hystar", config).model.to(torch.bfloat16)
    batch = model.preprocess(images).to(torch.bfloat16) if images.dtype == torch.uint8 else images.to(torch.bfloat16)
    with torch.no_grad():
        found = model.encode_image(batch)
        with naive_path(model):
            naive = model.encode_image(batch)
    assert found.dtype == naive.dtype == torch.bfloat16
    assert (found - naive).float().norm() < 0.05 * found.float().norm()


def test_the_model_is_restored_after_an_error_in_the_naive_path(config):
    model = create_hystar(config).model
    keys = set(model.state_dict())
    with pytest.raises(RuntimeError, match="inside"), naive_path(model):
        raise RuntimeError("inside")
    assert not any("Naive" in type(module).__name__ for module in model.modules())
    assert set(model.state_dict()) == keys
    copy.deepcopy(model)


def test_the_naive_path_needs_something_to_replace(config):
    with pytest.raises(ValueError, match="model must hold"), naive_path(torch.nn.Linear(2, 2)):
        pass
    truncated = create_hystar(replace(config, rank=4)).model
    with pytest.raises(ValueError, match="full-rank"), naive_path(truncated):
        pass
    assert not any("Naive" in type(module).__name__ for module in truncated.modules())


def test_measure_step_requires_equal_losses(config, images):
    method = create_hystar(config)
    naive = NaiveLoss(method.model)

    def step(which: HystarMethod) -> torch.Tensor:
        found = F.normalize(which.encode_image(torch.cat([images, images.flip(-1)])), dim=-1)
        return which.loss(found[:5], found[5:])

    measured = measure_step(method.model, lambda: step(method), lambda: step(naive), repeats=2)
    assert measured.ratio > 0
    assert measured.loss_difference < 1e-4
    with pytest.raises(ArithmeticError, match="the naive path gives the loss"):
        measure_step(method.model, lambda: step(method), lambda: 2 * step(naive), repeats=1)
