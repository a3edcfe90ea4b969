"""Two stages: a CycleGAN first, then the extractor on what its frozen generator makes of the sketches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_method import ACNet
from hystar_fast.methods.acnet.discriminator import Discriminator
from hystar_fast.methods.acnet.generator import Generator
from hystar_fast.methods.acnet.translation import Translation
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.methods.suite import tiny_config
from tests.support.acnet_cases import SMALL, gradients, inputs, moved, shapes, small_acnet


def test_the_losses_are_those_of_a_cyclegan_and_reach_both_generators_only() -> None:
    torch.manual_seed(0)
    forward, judge, way_back = Generator(4, 1), Discriminator(4), Translation(4, 1)
    sketches, photos, _ = inputs(shapes())
    found, made = way_back.losses(forward, judge, sketches, photos, "lsgan")
    back = way_back.to_sketch
    made_photos, made_sketches = forward(sketches), back(photos)
    adversarial = (judge(made_photos) - 1).square().mean()
    adversarial = adversarial + (way_back.sketch_discriminator(made_sketches) - 1).square().mean()
    cycle = F.l1_loss(back(made_photos), sketches) + F.l1_loss(forward(made_sketches), photos)
    identity = F.l1_loss(forward(photos), photos) + F.l1_loss(back(sketches), sketches)
    assert torch.allclose(found["loss"], adversarial + 10 * cycle + 5 * identity, rtol=1e-5)
    assert torch.allclose(made[0], made_photos, atol=1e-5) and torch.allclose(made[1], made_sketches, atol=1e-5)
    found["loss"].backward()
    assert all(p.grad is not None for part in (forward, back) for p in part.parameters())
    judges = [*judge.parameters(), *way_back.sketch_discriminator.parameters()]
    assert all(p.grad is None and p.requires_grad for p in judges)
    scores = way_back.discriminator_loss(judge, sketches, photos, made, "lsgan")
    right = (judge(photos) - 1).square().mean() + judge(made_photos).square().mean()
    other = way_back.sketch_discriminator
    right = right + (other(sketches) - 1).square().mean() + other(made_sketches).square().mean()
    assert torch.allclose(scores, right / 2, rtol=1e-5)


def test_the_first_stage_trains_the_cyclegan_and_the_second_what_embeds() -> None:
    method = small_acnet(synthesis="two-stage", cycle_epochs=2, warmup_epochs=1)
    before = copy.deepcopy(method.model.state_dict())
    for epoch in (0, 1):
        losses = method.step(shapes(), epoch, epoch)
        assert set(losses) == {"loss", "adversarial", "cycle", "identity", "discriminator"}
    changed = {name.partition(".")[0] for name in moved(before, method)}
    assert changed == {"generator", "discriminator", "translation"}
    parts = {name.split(".")[1] for name in moved(before, method) if name.startswith("translation.")}
    assert parts == {"to_sketch", "sketch_discriminator"}
    between = copy.deepcopy(method.model.state_dict())
    losses = method.step(shapes(), 2, 2)
    assert set(losses) == {"loss", "photo", "synthesised"}
    assert losses["loss"] == pytest.approx(5 * (losses["photo"] + losses["synthesised"]), rel=1e-5)
    last_layer = {n for n in moved(between, method) if n.startswith("extractor.")}
    assert last_layer == {"extractor.net.fc.weight", "extractor.net.fc.bias"}
    method.step(shapes(), 3, 3)
    assert {name.partition(".")[0] for name in moved(between, method)} == {"extractor", "proxies"}


def test_the_first_stage_needs_no_categories_and_learns_to_translate() -> None:
    method = small_acnet(synthesis="two-stage", cycle_epochs=1, cycle_lr=1e-3)
    batch = shapes()
    first = method.step(batch, 0, 0)
    for step in range(1, 60):
        last = method.step(batch, 0, step)
    assert last["cycle"] < first["cycle"] / 2 and last["identity"] < first["identity"] / 2
    assert method.model["proxies"].proxies.grad is None


def test_chunks_give_the_gradients_of_the_whole_batch() -> None:
    batch = shapes(count=10)
    whole, parts = (small_acnet(double=True, chunk_size=size, synthesis="two-stage") for size in (0, 4))
    for method in (whole, parts):
        method.step(batch, 0, 0)
    for name, gradient in gradients(whole).items():
        other = gradients(parts)[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.allclose(gradient, other, rtol=1e-9, atol=1e-12), name


def test_the_adapter_has_the_generator_and_not_the_way_back() -> None:
    method = small_acnet(synthesis="two-stage")
    kept = {name.partition(".")[0] for name in method.trained_parameters()}
    assert kept == {"extractor", "proxies", "generator"}


def test_a_sketch_term_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match=r'sketch_term must be true for acnet\.synthesis = "two-stage", got false'):
        ACNetConfig(synthesis="two-stage", sketch_term=False)
    with pytest.raises(ValueError, match=r"acnet\.cycle_epochs must be at least 1, got 0"):
        ACNetConfig(synthesis="two-stage", cycle_epochs=0)


def test_a_run_must_reach_the_second_stage_which_alone_is_validated() -> None:
    made = ACNet(tiny_config(None), ACNetConfig(**SMALL | {"synthesis": "two-stage", "cycle_epochs": 2}))
    with pytest.raises(ValueError, match=r"cycle_epochs must leave steps .*, got 2 epochs of 5 steps in a run of 10"):
        made.begin(StepPlan(8, 1e-3, epoch=5, steps=10))
    made.begin(StepPlan(8, 1e-3, epoch=5, steps=11))
    assert made.scores_from == 11
