"""Hystar: embeddings at zero offset, trained parameters, and styles that reach their own sample only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tests.support.small_timm  # noqa: F401, registers its models
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.nn import fast_svd_linear
from hystar_fast.nn.hypernetwork import Hypernetwork
from tests.support.small_clip import IMAGE_SIZE, small_config, write_small_clip
from tests.support.tolerance import relative_error

PAPER_HYPERNETWORK = 768 * 2048 + 2048 + 2048 * 1024 + 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hystar")


def model_of(folder: Path, *, offsets: float = 0.1, **fields: Any) -> Hystar:
    """Create a small Hystar with random offsets of deviation `offsets`, the same ones for the same arguments."""
    torch.manual_seed(1)
    model = Hystar(small_config(folder, **fields))
    with torch.no_grad():
        for _, parameter in model.static_parameters():
            parameter.normal_(std=offsets) if offsets else parameter.zero_()
        for network in model.hypernetworks.values():
            assert isinstance(network, Hypernetwork)
            for parameter in network.layers[-1].parameters():
                parameter.normal_(std=offsets) if offsets else parameter.zero_()
    return model


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE)


def plain_clip(model: Hystar) -> Any:
    """Load the backbone's weights into a model of open_clip."""
    return open_clip.create_model(model.config.backbone.removeprefix("open_clip:")).eval()


def gradients(model: Hystar) -> list[Tensor]:
    held = [parameter.grad for parameter in model.trainable_parameters()]
    assert all(gradient is not None for gradient in held)
    return [gradient.clone() for gradient in held if gradient is not None]


def step(model: Hystar, queries: Tensor, targets: Tensor) -> Tensor:
    """Run forward and backward of a contrastive loss of two encodings, and return the loss."""
    model.zero_grad(set_to_none=True)
    logits = model.encode_image(queries) @ model.encode_image(targets).T / 0.07
    loss = F.cross_entropy(logits, torch.arange(len(queries)))
    loss.backward()
    return loss.detach()


def test_zero_offsets_give_the_embeddings_of_open_clip(folder: Path) -> None:
    model, images = model_of(folder, offsets=0.0), images_of(3)
    truth = F.normalize(plain_clip(model).encode_image(images), dim=-1)
    assert relative_error(model.encode_image(images), truth) < 1e-5
    tokens = model.tokenizer(["a red square", "a blue circle"])
    assert relative_error(model.encode_text(tokens), F.normalize(plain_clip(model).encode_text(tokens), dim=-1)) < 1e-5
    assert relative_error(model_of(folder).encode_image(images), truth) > 1e-2


def test_embeddings_have_unit_length_and_the_width_of_the_backbone(folder: Path) -> None:
    model = model_of(folder)
    embedded = torch.cat([model.encode_image(images_of(4)), model.encode_text(model.tokenizer(["x"] * 2))])
    assert embedded.shape == (6, 24)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(6))


def test_without_a_style_argument_each_image_has_its_own_style(folder: Path) -> None:
    model, images = model_of(folder), images_of(3)
    z = model.style(images)
    assert torch.equal(model.encode_image(images), model.encode_image(images, z))
    assert relative_error(model.encode_image(images, z.roll(1, 0)), model.encode_image(images)) > 1e-3
    shared = model.encode_image(images, z[0])
    assert relative_error(shared, model.encode_image(images, z[:1].expand(3, -1))) < 1e-5


def test_only_offsets_and_hypernetworks_are_trained(folder: Path) -> None:
    model = model_of(folder)
    step(model, images_of(3), images_of(3))
    trained = {id(parameter) for parameter in model.trainable_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in trained), name
    layers, width = model.backbone.depth, model.backbone.width
    assert sum(p.numel() for _, p in model.static_parameters()) == layers * 2 * width
    assert model.parameter_counts()["static"] == layers * 2 * width


def test_parameter_groups_have_the_learning_rates_of_the_paper(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(folder)
    groups = {group["name"]: group for group in model.parameter_groups()}
    assert {name: group["lr"] for name, group in groups.items()} == {"static": 1e-3, "dynamic": 1e-5}
    assert sum(len(group["params"]) for group in groups.values()) == len(model.trainable_parameters())
    torch.optim.Adam(model.parameter_groups(static_lr=0.1))
    counts = model.parameter_counts()
    model.print_trainable_parameters()
    model.hypernetworks.requires_grad_(False)
    model.print_trainable_parameters()
    both, static = capsys.readouterr().out.splitlines()
    added, rest = counts["static"] + counts["dynamic"], f"backbone's {counts['backbone']:,}"
    assert both.startswith(f"trainable: {added:,} ({counts['static']:,} static + {counts['dynamic']:,} dynamic)")
    assert static.startswith(f"trainable: {counts['static']:,} ({counts['static']:,} static)")
    assert both.endswith(rest) and static.endswith(rest)


@pytest.mark.parametrize(("blocks", "static"), [((), True), ((2,), False), ((), False)])
def test_each_part_can_be_left_out(folder: Path, blocks: tuple[int, ...], static: bool) -> None:
    model, images = model_of(folder, blocks=blocks, static=static), images_of(2)
    counts = model.parameter_counts()
    assert (counts["static"] > 0, counts["dynamic"] > 0) == (static, bool(blocks))
    assert [group["name"] for group in model.parameter_groups()] == ["static"] * static + ["dynamic"] * bool(blocks)
    assert model.encode_image(images).shape == (2, 24)
    if not blocks:
        with pytest.raises(ValueError, match=r"blocks=\(\)"):
            model.style(images)
        with pytest.raises(ValueError, match="style must be None"):
            model.encode_image(images, torch.zeros(2, 24))


def test_two_encodings_under_gradient_checkpointing_have_the_reference_gradients(folder: Path) -> None:
    model, queries, targets = model_of(folder), images_of(5), images_of(5)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    model.backbone.blocks[2].register_forward_pre_hook(count)
    model.backbone.blocks[2].mlp.register_forward_pre_hook(count)
    loss = step(model, queries, targets)
    truth, plain_runs = gradients(model), runs
    model.set_gradient_checkpointing(True)
    assert torch.equal(step(model, queries, targets), loss)
    assert runs > 2 * plain_runs, "the blocks must be recomputed"
    for gradient, expected in zip(gradients(model), truth, strict=True):
        assert relative_error(gradient, expected) < 1e-6


def test_threads_do_not_mix_their_styles(folder: Path) -> None:
    model, images = model_of(folder), images_of(4)
    styles = F.normalize(torch.randn(8, 4, model.backbone.embed_dim), dim=-1)
    with torch.no_grad():
        expected = [model.encode_image(images, z) for z in styles]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda k: torch.no_grad()(model.encode_image)(images, styles[k % 8]), range(64)))
    assert relative_error(expected[0], expected[1]) > 1e-3
    for k, embedded in enumerate(found):  # the last bits of products depend on where their buffers begin
        assert relative_error(embedded, expected[k % 8]) < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_as_one_graph(folder: Path, checkpointing: bool) -> None:
    model, images = model_of(folder), images_of(3)
    model.set_gradient_checkpointing(checkpointing)
    z = model.style(images)
    truth = model.encode_image(images, z)
    truth.sum().backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    torch.compiler.reset()
    compiled = torch.compile(model.encode_image, fullgraph=True, backend="aot_eager")(images, z)
    assert relative_error(compiled, truth) < 1e-6
    compiled.sum().backward()
    for gradient, reference in zip(gradients(model), expected, strict=True):
        assert relative_error(gradient, reference) < 1e-4


def test_bfloat16_autocast_and_weights(folder: Path) -> None:
    model, images = model_of(folder), images_of(4)
    truth = model.encode_image(images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        embedded = model.encode_image(images)
        embedded.float().sum().backward()
    assert (embedded.float() * truth).sum(-1).min() > 0.99
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model))
    half = model.to(torch.bfloat16)
    assert all(p.dtype == torch.float32 for _, p in half.static_parameters())
    assert (half.encode_image(images).float() * truth).sum(-1).min() > 0.98


def test_nan_and_inf_in_an_image_reach_only_its_own_row(folder: Path) -> None:
    model, images = model_of(folder), images_of(5)
    truth = model.encode_image(images)
    for value in (float("nan"), float("inf")):
        changed = images.clone()
        changed[2, 0, 5, 5] = value
        embedded = model.encode_image(changed)
        assert not embedded[2].isfinite().any()
        others = [0, 1, 3, 4]
        assert torch.equal(embedded[others], truth[others])


@pytest.fixture(scope="module")
def unchanged(folder: Path) -> Hystar:
    return model_of(folder)


@settings(max_examples=8)
@given(order=st.permutations(range(4)))
def test_samples_are_independent(unchanged: Hystar, order: list[int]) -> None:
    model, images = unchanged, images_of(4)
    assert relative_error(model.encode_image(images[order]), model.encode_image(images)[order]) < 1e-5


def test_an_empty_batch_gives_empty_embeddings(folder: Path) -> None:
    model = model_of(folder)
    assert model.encode_image(images_of(0)).shape == (0, 24)
    assert model.style(images_of(0)).shape == (0, 24)


def test_merging_keeps_embeddings_and_hypernetworks(folder: Path) -> None:
    model, images = model_of(folder), images_of(3)
    z, truth = model.style(images), model.encode_image(images)
    assert model.merge_static_() is model
    assert torch.equal(model.style(images), z)
    assert relative_error(model.encode_image(images), truth) < 1e-5
    assert relative_error(model.encode_image(images, z.roll(1, 0)), truth) > 1e-3
    assert [group["name"] for group in model.parameter_groups()] == ["dynamic"]
    assert all(
        isinstance(layer, nn.Linear) for block in model.backbone.blocks for layer in (block.mlp.c_fc, block.mlp.c_proj)
    )
    assert torch.equal(model.merge_static_().encode_image(images), model.encode_image(images))


def test_a_truncated_rank_modulates_its_leading_directions(folder: Path) -> None:
    model, images = model_of(folder, offsets=0.0, rank=5), images_of(2)
    truth = F.normalize(plain_clip(model).encode_image(images), dim=-1)
    assert relative_error(model.encode_image(images), truth) < 1e-5
    assert {parameter.numel() for _, parameter in model.static_parameters()} == {5}
    assert {network.rank for network in model.hypernetworks.values()} == {5}


@pytest.mark.parametrize(
    ("style", "error", "message"),
    [
        (torch.zeros(3, 24), ValueError, r"style must have shape \[2, 24\] or \[24\], got \[3, 24\]"),
        (torch.zeros(2, 23), ValueError, r"got \[2, 23\]"),
        (torch.zeros(2, 24).long(), TypeError, "style must be a floating-point tensor, got torch.int64"),
        ("sketch", TypeError, "style must be a floating-point tensor, got str"),
    ],
)
def test_bad_styles(unchanged: Hystar, style: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unchanged.encode_image(images_of(2), style)


def test_bad_construction(folder: Path) -> None:
    with pytest.raises(TypeError, match="config must be a HystarConfig, got dict"):
        Hystar({"backbone": "tiny"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"blocks must lie within 1\.\.4.*got \(2, 5\)"):
        model_of(folder, blocks=(2, 5))
    with pytest.raises(ValueError, match=r"rank must lie in 1\.\.32"):
        model_of(folder, rank=33)
    with pytest.raises(ValueError, match=r"images .*\[B, 3, 32, 32\]"):
        model_of(folder).encode_image(torch.zeros(2, 3, 8, 8))


def test_the_tiny_backbone_takes_a_style() -> None:
    model = Hystar(HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=None))
    assert sorted(map(int, model.hypernetworks)) == [1, 3, 4]
    images = torch.randn(2, 3, 64, 64)
    z = model.style(images)
    assert z.shape == model.encode_image(images).shape == (2, 192)
    assert relative_error(model.encode_image(images, z.roll(1, 0)), model.encode_image(images)) > 1e-4


@pytest.mark.parametrize(
    ("blocks", "millions"),
    [
        (tuple(range(4, 13)), 33.1),
        ((4, 6, 8, 10, 12), 18.4),
        ((4, 7, 10, 13), 14.7),
        ((4, 8, 12), 11.0),
        ((1,), 3.7),
        ((16, 19, 22, 24), 14.7),
    ],
)
def test_parameters_of_table_8(blocks: tuple[int, ...], millions: float) -> None:
    """Count parameters on the meta device, where only shapes exist."""
    with torch.device("meta"):
        model = Hystar(HystarConfig(pretrained=None, style_pretrained=None, blocks=blocks))
    counts = model.parameter_counts()
    assert counts["dynamic"] == len(blocks) * PAPER_HYPERNETWORK
    assert round(counts["dynamic"] / 1e6, 1) == millions
    assert counts["static"] == 24 * 2 * 1024


def test_parameters_of_table_5() -> None:
    with torch.device("meta"):
        counts = Hystar(HystarConfig(pretrained=None, style_pretrained=None)).parameter_counts()
    before, added = counts["backbone"], counts["static"] + counts["dynamic"]
    assert int(before / 1e6) == 427
    assert int((before + added) / 1e6) == 442
    assert 100 * added / before == pytest.approx(3.5, abs=0.06)


@pytest.mark.parametrize(
    ("hidden", "depth", "millions"), [(1024, 2, 1.8), (2048, 2, 3.7), (4096, 2, 7.3), (None, 1, 0.8), (2048, 3, 7.9)]
)
def test_parameters_of_table_9(hidden: int | None, depth: int, millions: float) -> None:
    network = Hypernetwork(768, 1024, hidden, depth, device="meta")
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("vision", "fields", "message"),
    [
        ({"block_type": "custom", "qk_norm": True}, {}, "plain softmax attention"),
        (
            {"timm_model_name": "small_eva02", "timm_pool": "avg", "timm_proj": "none", "embed_dim": 32},
            {"design": "reversed"},
            "MLP of one layer after the",
        ),
    ],
)
def test_what_cannot_be_replaced_is_refused_before_any_weight_is_factored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vision: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    backbone = write_small_clip(tmp_path, **vision)
    factored: list[Any] = []
    monkeypatch.setattr(fast_svd_linear, "svd_factors", lambda *args, **_: factored.append(args))
    with pytest.raises(ValueError, match=message):
        Hystar(HystarConfig(backbone, "folder", style="clip", blocks=(4,), **fields))
    assert not factored


def test_the_trial_of_an_injection_draws_nothing_and_keeps_every_weight(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    backbone = create_backbone(config)
    before = dict(backbone.named_parameters())
    state = torch.get_rng_state()
    trial = backbone.without_values()
    with torch.device("meta"):
        trial.inject_dynamic(1, None)
        trial.inject_static(1, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.is_meta for parameter in trial.parameters())
    after = dict(backbone.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)
