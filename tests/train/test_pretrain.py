"""Pretraining the tiny backbone: its towers, views, batches, validation, and resuming a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.models.tiny import NORMALISE, TinyTokenizer, create_tiny
from hystar_fast.train.pretrain import Sampler, compute_losses, pretrain, schedule
from hystar_fast.train.pretrain_data import Drawings
from hystar_fast.train.pretrain_shapes import shape_loss, shapes
from hystar_fast.train.pretrain_towers import choose_patches, encode_images, encode_texts
from hystar_fast.train.pretrain_validation import Validation
from hystar_fast.train.pretrain_views import _CHANGES, make_views

CONCEPTS = 40


@pytest.fixture
def drawings() -> Drawings:
    """Return eight emoji, twelve icons of two families, ten icons and ten drawings of clip art."""
    images = np.random.default_rng(0).integers(0, 256, (3 * CONCEPTS, 64, 64, 3), dtype=np.uint8)
    groups = [[[3 * i, 3 * i + 1], [3 * i + 2]] if i < 20 else [[3 * i]] for i in range(CONCEPTS)]
    families = [["noto", "flat"] if i < 20 else ["ph"] if i < 30 else ["openclipart"] for i in range(CONCEPTS)]
    keys = [f"{i:x}" if i < 8 else f"icon {i}" for i in range(CONCEPTS)]
    return Drawings(images, groups, families, [f"thing {i}" for i in range(CONCEPTS)], keys, {"noto": 60}, {"noto": 1})


def test_towers_embed_as_the_model_does() -> None:
    model, tokenizer = create_tiny()
    weights = dict(model.named_parameters())
    concepts = EmojiStyles().concepts("val")[:12]
    views = NORMALISE(EmojiStyles().images("noto", concepts))
    tokens = tokenizer(
        ["dog face", "a", "the largest caption that does not fit into sixteen of its tokens at all " * 3]
    )
    with torch.no_grad():
        torch.testing.assert_close(encode_images(weights, views), model.encode_image(views), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encode_texts(weights, tokens), model.encode_text(tokens), rtol=1e-4, atol=1e-5)
        order = torch.rand(12, 64).argsort(dim=1)
        torch.testing.assert_close(
            encode_images(weights, views, order), model.encode_image(views), rtol=1e-4, atol=1e-5
        )


def test_gradients_are_those_of_the_model() -> None:
    model, tokenizer = create_tiny()
    views, tokens = torch.rand(4, 3, 64, 64), tokenizer(["red heart", "dog", "cat face", "a b c d"])
    (model.encode_image(views).square().sum() + model.encode_text(tokens).square().sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    weights = dict(model.named_parameters())
    (encode_images(weights, views).square().sum() + encode_texts(weights, tokens).square().sum()).backward()
    for name, gradient in expected.items():
        found = weights[name].grad
        assert found is not None and (found - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_bfloat16_losses_are_close_and_reach_every_weight() -> None:
    model, tokenizer = create_tiny()
    weights = dict(model.named_parameters())
    concepts = EmojiStyles().concepts("val")[:16]
    views = NORMALISE(torch.cat([EmojiStyles().images(style, concepts) for style in ("noto", "photo3d")]))
    tokens = tokenizer([concept.name for concept in concepts])
    *losses, embedded = compute_losses(weights, views, tokens, None)
    a, b = torch.nn.functional.normalize(model.encode_image(views), dim=-1).chunk(2)
    logits, target = model.logit_scale.exp().clamp(max=100) * a @ b.T, torch.arange(16)
    exact = sum(torch.nn.functional.cross_entropy(x, target) for x in (logits, logits.T)) / 2
    assert losses[0].detach().item() == pytest.approx(float(exact.detach()), abs=0.02)
    assert torch.nn.functional.cosine_similarity(embedded, torch.cat([a, b])).min() > 0.995
    torch.stack(losses).sum().backward()
    assert [name for name, p in weights.items() if p.grad is None or not p.grad.isfinite().all()] == []


def test_blank_patches_are_dropped_more_often() -> None:
    torch.manual_seed(0)
    views = torch.ones(200, 3, 64, 64)
    views[..., :32, :] = torch.rand(200, 3, 32, 64)
    kept = choose_patches(views, 8, 0.6)
    assert kept is not None and kept.shape == (200, 25)
    assert all(len(set(row.tolist())) == 25 for row in kept)
    assert 0.6 < (kept < 32).float().mean() < 0.95, "the drawn half must be seen more, the blank half sometimes"
    assert choose_patches(views, 8, 0.0) is None


def test_batches_have_every_kind_of_concept_and_two_families_where_there_are_two(drawings: Drawings) -> None:
    sample = Sampler(drawings)
    first, second, captions = sample(20, np.random.default_rng(0))
    assert len(set(captions)) == 20
    concepts = [int(caption.split()[1]) for caption in captions]
    kinds = [sum(low <= i < high for i in concepts) for low, high in ((0, 8), (8, 20), (20, 30), (30, 40))]
    assert kinds == [6, 8, 3, 3]
    for a, b, concept in zip(first, second, concepts, strict=True):
        group = drawings.groups[concept]
        assert any(a in family for family in group) and any(b in family for family in group)
        assert len(group) == 1 or not any(a in family and b in family for family in group)


def test_views_keep_their_range_and_differ() -> None:
    torch.manual_seed(0)
    images = EmojiStyles().images("noto", EmojiStyles().concepts("train")[:96])
    before = images.clone()
    views = make_views(images)
    assert torch.equal(images, before)
    assert views.shape == images.shape and views.min() >= -1 and views.max() <= 1 and views.isfinite().all()
    assert not torch.equal(views, make_views(images))
    moved = (NORMALISE(images) - views).abs().mean((1, 2, 3))
    assert (moved > 0.02).float().mean() > 0.9


def test_a_step_stays_on_the_device_of_its_data() -> None:
    """Tensors made without a device would be on "meta" here and meet those of the data, as they would with CUDA."""
    model, tokenizer = create_tiny()
    images, tokens = EmojiStyles().images("noto", EmojiStyles().concepts("train")[:64]), tokenizer(["a", "b c"] * 16)
    with torch.device("meta"):
        views = make_views(images)
        *losses, embedded = compute_losses(dict(model.named_parameters()), views, tokens, choose_patches(views, 8, 0.4))
        drawn = images.float() / 255
        losses.append(shape_loss(embedded @ torch.ones(192, 576, device="cpu"), drawn, shapes(drawn).mean(dim=0)))
        torch.stack(losses).sum().backward()
    assert all(tensor.device.type == "cpu" for tensor in (views, *losses, model.visual.proj.grad))


def test_shapes_are_directions_of_edges_cell_by_cell() -> None:
    picture = torch.ones(1, 3, 64, 64)
    picture[..., 20:] = 0  # a vertical edge in the third column of cells
    found = shapes(picture).view(9, 8, 8)
    assert found[0, :, 2].min() > 0.1 and found.count_nonzero() == 8
    assert torch.equal(shapes(picture.transpose(2, 3)).view(9, 8, 8).argmax(0)[2], torch.full((8,), 4)), (
        "or its twin, 5"
    )
    drawings = EmojiStyles().images("photo3d", EmojiStyles().concepts("val")[:8]).float() / 255
    assert torch.allclose(shapes(drawings), shapes(1 - drawings), atol=1e-5), "dark on light is light on dark"
    assert shapes(torch.ones(1, 3, 64, 64)).abs().max() == 0


def test_the_shape_of_another_place_is_another_one() -> None:
    drawings = EmojiStyles().images("photo3d", EmojiStyles().concepts("val")[:8]).float() / 255
    mean = shapes(drawings).mean(dim=0)
    exact, moved = shapes(drawings) - mean, shapes(drawings.roll(12, dims=3)) - mean
    assert shape_loss(exact, drawings, mean).item() == pytest.approx(0, abs=1e-6)
    assert shape_loss(moved, drawings, mean).item() > 0.5


def test_a_blank_page_gets_no_lines() -> None:
    torch.manual_seed(0)
    names = ("_line_art", "_ink", "_pencil", "_halftone", "_thicken", "_thin", "_clutter")
    page = torch.ones(16, 3, 64, 64)
    for _, change in _CHANGES:
        if change.__name__ in names:
            assert (change(page) > 0.99).all(), change.__name__


def test_schedule_can_decay_from_any_step() -> None:
    rates = [schedule(step, 2000) for step in range(2000)]
    assert rates[0] == 1 / 200 and max(rates) == 1 and rates[1000] == 1 and 0 < rates[-1] < 0.01
    assert schedule(900, 1200) == 1 and schedule(901, 1200) < 1 and schedule(900, 12000) == 1


def test_validation_measures_the_shipped_weights_on_validation_concepts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = EmojiStyles.image
    monkeypatch.setattr(EmojiStyles, "image", lambda self, style, key: asked.append(key) or original(self, style, key))
    model, tokenizer = create_tiny()
    found = Validation()(dict(model.named_parameters()), tokenizer)
    assert {EmojiStyles().concept(key).split for key in asked} == {"val"}
    registered, displaced = found["registered"], found["displaced"]
    assert isinstance(registered, dict) and isinstance(displaced, dict)
    assert registered["outline"] > 55 and displaced["outline"] < registered["outline"]
    assert registered["hard"] == pytest.approx(sum(registered[s] for s in ("outline", "sketch", "lowres")) / 3, abs=0.1)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, drawings: Drawings) -> None:
    drawings.save(tmp_path / "drawings2.npz")
    ends = []
    for name, stops in (("whole", (3,)), ("resumed", (2, 3))):
        for stop in stops:
            # the same recipe, cut after `stop` steps
            pretrain(
                tmp_path, tmp_path / name, steps=3, batch=8, layers=2, stop_after=stop, checkpoint_minutes=0,
                validate_views=32,
            )  # fmt: skip
        ends.append(load_file(tmp_path / name / "tiny.safetensors"))
        curve = [json.loads(line) for line in (tmp_path / name / "validation.jsonl").read_text().splitlines()]
        assert [row["views"] for row in curve] == [32, 48]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    model, _ = create_tiny(tmp_path / "whole" / "tiny.safetensors", tokenizer=TinyTokenizer())
    assert len(model.visual.transformer.resblocks) == 2
    recipe = json.loads((tmp_path / "whole" / "pretrain.json").read_text())
    assert recipe["layers"] == 2 and recipe["near_duplicates"] == {"noto": 1}


def test_fewer_steps_end_a_run_early_from_its_checkpoint(tmp_path: Path, drawings: Drawings) -> None:
    drawings.save(tmp_path / "drawings2.npz")
    pretrain(tmp_path, tmp_path / "run", steps=40, batch=8, layers=1, stop_after=3, validate_views=10**6)
    pretrain(tmp_path, tmp_path / "run", steps=4, batch=8, layers=1, validate_views=10**6)
    recipe = json.loads((tmp_path / "run" / "pretrain.json").read_text())
    assert recipe["steps"] == 4 and [row["step"] for row in recipe["curve"]] == [4]
