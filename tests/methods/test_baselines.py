"""The parameter-efficient baselines: sizes, trained parameters, initial values, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods import baselines
from hystar_fast.methods.adaptformer import SCALE, AdaptFormer
from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.frozen import Frozen
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.suite import create_method
from hystar_fast.methods.vpt import VPT, Prompted
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.open_clip import OpenClipBackbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.tiny import NORMALISE, RESIZE
from hystar_fast.train.loop import train
from hystar_fast.train.recipe import Recipe
from tests.support.small_clip import small_config, spy_on_blocks

WITH_PROMPTS = ("vpt", "freestyle")
TABLE_5 = {"vpt": (428, 0.2), "ia3": (427, 0.1), "adaptformer": (429, 0.5)}
CHANGE = Callable[[str, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HystarConfig:
    return small_config(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 32, 32)


def disturb(method: Any) -> list[nn.Parameter]:
    """Move every trained parameter away from its initial value."""
    trained = [p for group in method.parameter_groups().values() for p in group]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return trained


def tower(visual: Any, images: Tensor, change: CHANGE) -> Tensor:
    """Run the image tower operation by operation; `change(name, output, input)` replaces an operation's output."""
    patches = F.conv2d(images, visual.conv1.weight, stride=visual.conv1.stride).flatten(2).transpose(1, 2)
    x = change("conv1", patches, images)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = change("ln_pre", visual.ln_pre(x), x)
    for i, block in enumerate(visual.transformer.resblocks):
        B, T, D = x.shape
        normed = change(f"{i}.ln_1", block.ln_1(x), x)
        packed = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v = change(f"{i}.in_proj", packed, normed).split(D, -1)
        k, v = change(f"{i}.k", k, normed), change(f"{i}.v", v, normed)
        q, k, v = (t.view(B, T, block.attn.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(B, T, D)
        x = x + change(f"{i}.out_proj", block.attn.out_proj(mixed), mixed)
        normed = change(f"{i}.ln_2", block.ln_2(x), x)
        hidden = block.mlp.gelu(change(f"{i}.c_fc", block.mlp.c_fc(normed), normed))
        hidden = change(f"{i}.hidden", hidden, normed)
        out = change(f"{i}.c_proj", block.mlp.c_proj(hidden), hidden)
        x = x + change(f"{i}.mlp", out, normed)
    return change("ln_post", visual.ln_post(x), x)[:, 0] @ visual.proj


def assert_equals_tower(config: HystarConfig, method: Frozen, images: Tensor, change: CHANGE) -> None:
    """Assert that the method's embeddings are those of the frozen tower with `change`."""
    frozen = create_backbone(config)
    assert isinstance(frozen, OpenClipBackbone)
    expected = F.normalize(tower(frozen.visual, method.normalise(images), change), dim=-1)
    plain = F.normalize(frozen.encode_image(method.normalise(images)), dim=-1)
    assert not torch.allclose(expected, plain, atol=1e-3), "the change has no effect"
    assert torch.allclose(method.encode_image(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_sizes_on_the_papers_backbone(name):
    with torch.device("meta"):
        clip = open_clip.create_model("ViT-L-14", device="meta")
    backbone = OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)
    whole = sum(p.numel() for p in backbone.parameters())
    method = BASELINES[name](backbone, F.mse_loss)
    count = count_parameters(method)[name]
    assert f"{count:,}" in (BASELINES[name].__doc__ or "")
    assert f"| {name} | {count:,} | {100 * count / whole:.2f} % |" in (baselines.__doc__ or "")
    if name in TABLE_5:
        millions, share = TABLE_5[name]
        assert (whole + count) // 10**6 == millions
        # (IA)³ of the image tower adds less than Table 5 prints; the docstring of `baselines` states it.
        assert round(100 * count / whole, 1) == (share if name != "ia3" else 0.0)


def test_the_stated_counts_of_ia3_are_right():
    clip: Any = open_clip.create_model("ViT-L-14", device="meta")
    whole = sum(p.numel() for p in clip.parameters())
    published, outputs = [], []
    for transformer in (clip.visual.transformer, clip.transformer):
        blocks = [(block.attn, block.mlp) for block in transformer.resblocks]
        published.append(sum(2 * attn.embed_dim + mlp.c_proj.in_features for attn, mlp in blocks))
        linears = [
            (attn.in_proj_weight, attn.out_proj.weight, mlp.c_fc.weight, mlp.c_proj.weight) for attn, mlp in blocks
        ]
        outputs.append(sum(len(weight) for weights in linears for weight in weights))
    text = " ".join((baselines.__doc__ or "").split())
    assert f"= {published[0]:,} numbers" in text and f"{sum(published):,} (0.047 %)" in text
    assert f"{outputs[0]:,} in the image tower (0.052 %), {sum(outputs):,} in both (0.071 %)" in text
    shares = [100 * count / whole for count in (published[0], sum(published), outputs[0], sum(outputs))]
    assert [f"{share:.1f}" for share in shares] == ["0.0", "0.0", "0.1", "0.1"]
    assert [f"{share:.3f}" for share in shares[1:]] == ["0.047", "0.052", "0.071"]


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_without_prompts_start_as_the_frozen_model_and_none_changes_text(name, config, images):
    frozen, method = create_method("frozen", config), create_method(name, config)
    assert method.name == name
    same = torch.allclose(method.encode_image(images), frozen.encode_image(images), atol=1e-5)
    assert same == (name not in WITH_PROMPTS)
    disturb(method)
    assert not torch.allclose(method.encode_image(images), frozen.encode_image(images), atol=1e-3)
    texts, expected = method.encode_text(["a dog"]), frozen.encode_text(["a dog"])
    assert texts is not None and expected is not None
    assert torch.equal(texts, expected)


@pytest.mark.parametrize("name", BASELINES)
def test_two_steps_move_every_trained_parameter_and_nothing_else(name, config, images):
    method = create_method(name, config)
    module = method.modules[0]
    trained = {id(p) for group in method.parameter_groups().values() for p in group}
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    optimizer = torch.optim.SGD([p for g in method.parameter_groups().values() for p in g], lr=0.1)
    for _ in range(2):  # AdaptFormer's down-projection has a gradient only after its up-projection has moved from zero
        optimizer.zero_grad()
        found = method.encode_image(torch.cat([images, images.flip(-1)]))
        method.loss(found[:5], found[5:]).backward()
        optimizer.step()
    for key, parameter in module.named_parameters():
        assert (not torch.equal(parameter, before[key])) == (id(parameter) in trained), key
        assert parameter.requires_grad == (id(parameter) in trained), key
        assert (parameter.grad is not None) == (id(parameter) in trained), key


@pytest.mark.parametrize("name", BASELINES)
def test_the_training_loop_changes_its_parameters(name, config):
    method = create_method(name, config)
    before = [p.detach().clone() for p in method.parameter_groups()[name]]
    losses = train(method, load_emoji("train").select(limit=6), Recipe({name: 1e-3}, steps=2, batch_size=4))
    assert len(losses) == 2
    after = method.parameter_groups()[name]
    assert all(bool(p.isfinite().all()) for p in after)
    assert any(not torch.equal(p, old) for p, old in zip(after, before, strict=True))


def test_ia3_rescales_keys_values_and_hidden_activations(config, images):
    method = create_method("ia3", config)
    assert isinstance(method, Frozen)
    trained = disturb(method)
    assert len(trained) == 4 * 3
    factors = {}
    for i, block in enumerate(method.model.blocks):
        scale = block.attn.parametrizations.in_proj_weight[0]
        factors |= {f"{i}.k": scale.keys, f"{i}.v": scale.values}
        factors[f"{i}.hidden"] = block.mlp.c_proj.parametrizations.weight[0].scale
    assert_equals_tower(config, method, images, lambda name, x, _: x * factors[name] if name in factors else x)


def test_ssf_scales_and_shifts_after_every_operation(config, images):
    method = create_method("ssf", config)
    assert isinstance(method, Frozen)
    trained = disturb(method)
    places = {name: getattr(method.model.visual, name) for name in ("conv1", "ln_pre", "ln_post")}
    for i, block in enumerate(method.model.blocks):
        for name in ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn"):
            places[f"{i}." + {"attn": "in_proj"}.get(name, name.split(".")[-1])] = block.get_submodule(name)
    assert len(trained) == 2 * len(places)

    def change(name: str, x: Tensor, _: Tensor) -> Tensor:
        if name not in places:
            return x
        prefix = "in_proj_" if name.endswith("in_proj") else ""
        found = places[name].parametrizations
        shift = places[name].bias if name == "conv1" else found[f"{prefix}bias"][0].shift
        return x * found[f"{prefix}weight"][0].scale + shift

    assert_equals_tower(config, method, images, change)


def test_adaptformer_adds_a_bottleneck_to_the_mlp(config, images):
    method = create_method("adaptformer", config)
    assert isinstance(method, Frozen)
    disturb(method)
    adapters = {f"{i}.mlp": block.mlp for i, block in enumerate(method.model.blocks)}

    def change(name: str, x: Tensor, given: Tensor) -> Tensor:
        if name not in adapters:
            return x
        down, up = adapters[name].down, adapters[name].up
        return x + SCALE * ((given @ down.weight.T + down.bias).relu() @ up.weight.T + up.bias)

    assert_equals_tower(config, method, images, change)


def test_svft_moves_the_singular_values_of_every_matrix(config, images):
    method = create_method("svft", config)
    assert isinstance(method, Frozen)
    assert len(disturb(method)) == 4 * 4
    updates = {}
    for i, block in enumerate(method.model.blocks):
        for name in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
            layer = block.get_submodule(name)
            updates[f"{i}.{name.split('.')[1]}"] = (layer.u * layer.delta_s_static) @ layer.vh
    assert_equals_tower(
        config, method, images, lambda name, x, given: x + given @ updates[name].T if name in updates else x
    )


def test_last_block_trains_all_parameters_of_the_last_block_and_no_others(config):
    method = create_method("last_block", config)
    assert isinstance(method, Frozen)
    names = {name for name, p in method.model.named_parameters() if p.requires_grad}
    assert names == {
        f"clip.visual.transformer.resblocks.3.{name}" for name, _ in method.model.blocks[-1].named_parameters()
    }


def test_vpt_adds_prompts_before_every_block_and_removes_them_after_it(config, images, monkeypatch):
    backbone = create_backbone(config)
    assert isinstance(backbone, OpenClipBackbone)
    prompted = Prompted(backbone, 3)
    seen, made = spy_on_blocks(backbone, monkeypatch)
    found = prompted.encode_image(images)
    monkeypatch.undo()
    assert [x.shape for x in seen] == [(5, 1 + 3 + 16, 32)] * 4
    for x, prompts in zip(seen, prompted.prompts, strict=True):
        assert torch.equal(x[:, 1:4], prompts.expand(5, 3, 32))
    for before, after in zip(made, seen[1:], strict=False):
        assert torch.equal(before[:, 0], after[:, 0])
        assert torch.equal(before[:, 4:], after[:, 4:])
    visual = backbone.visual
    assert torch.allclose(found, visual.ln_post(made[-1][:, 0]) @ visual.proj, atol=1e-5)
    with torch.no_grad():
        without = Prompted(backbone, 0).encode_image(images)
    assert torch.allclose(without, backbone.encode_image(images), atol=1e-5)
    backbone.gradient_checkpointing = True
    kept = torch.autograd.grad(found.pow(2).sum(), prompted.prompts)[0]
    again = torch.autograd.grad(prompted.encode_image(images).pow(2).sum(), prompted.prompts)[0]
    assert torch.allclose(kept, again, atol=1e-5)


def test_bad_sizes_and_names_are_rejected(config):
    backbone = create_backbone(config)
    assert isinstance(backbone, OpenClipBackbone)
    with pytest.raises(ValueError, match="prompts must be at least 1, got 0"):
        VPT(backbone, F.mse_loss, prompts=0)
    with pytest.raises(ValueError, match="bottleneck must be at least 1, got 0"):
        AdaptFormer(backbone, F.mse_loss, bottleneck=0)
    with pytest.raises(ValueError, match=r"name must be one of .*'svft'"):
        create_method("prefix", config)


@pytest.mark.parametrize("name", ["vpt", "adaptformer", "freestyle"])
def test_the_seed_determines_the_initial_values(name, config):
    def drawn(seed: int) -> Tensor:
        method = create_method(name, config, seed=seed)
        return torch.cat([p.detach().flatten() for p in method.parameter_groups()[name]])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
