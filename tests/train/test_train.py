"""Pairs, groups, schedule, loop and checkpoints, with a linear encoder that trains in milliseconds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.protocol import StyledConcepts, load_split
from hystar_fast.train.checkpoint import (
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from hystar_fast.train.loop import train
from hystar_fast.train.optim import cosine_factor, parameter_groups, rate_factor, set_rates
from hystar_fast.train.pairs import PairImages, PairSampler
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import pair_loss
from tests.support.linear_method import RATES, Linear

STYLES = ("sketch", "outline", "text")


@pytest.fixture(scope="module")
def concepts() -> StyledConcepts:
    return load_split("train", STYLES, limit=40)


def test_a_batch_holds_distinct_concepts_in_styles_they_are_drawn_in(concepts):
    sampler = PairSampler(concepts, STYLES, 16, seed=3)
    seen = set()
    for step in range(20):
        batch = sampler.batch(step)
        assert len(set(batch.concepts.tolist())) == 16
        for concept, column in zip(batch.concepts.tolist(), batch.styles.tolist(), strict=True):
            assert concept in concepts.rows(STYLES[column]).tolist()
            seen.add(column)
    assert seen == {0, 1, 2}


def test_an_epoch_visits_every_concept_once_and_epochs_differ(concepts):
    sampler = PairSampler(concepts, STYLES, 20, seed=1)
    assert sampler.batches_per_epoch == 2
    epochs = [torch.cat([sampler.batch(2 * e).concepts, sampler.batch(2 * e + 1).concepts]) for e in (0, 1)]
    assert all(sorted(epoch.tolist()) == list(range(40)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_batch_depends_on_seed_and_step_alone(concepts):
    one, two, other = (PairSampler(concepts, STYLES, 8, seed=s) for s in (5, 5, 6))
    torch.rand(3)
    for step in (7, 0):
        assert torch.equal(one.batch(step).concepts, two.batch(step).concepts)
        assert torch.equal(one.batch(step).styles, two.batch(step).styles)
    assert not torch.equal(one.batch(0).concepts, other.batch(0).concepts)


@pytest.mark.parametrize(
    ("styles", "size", "message"),
    [
        (STYLES, 1, "batch_size must be at least 2"),
        ((), 8, "needs 1 of styles and 2 concepts at least, got 0 and 40"),
        (("outline",), 8, "every concept needs a query in one of styles"),
        (("cubism",), 8, "style must be one of"),
    ],
)
def test_bad_pairs_are_named(concepts, styles, size, message):
    with pytest.raises(ValueError, match=message):
        PairSampler(concepts, styles, size)


def test_groups_keep_their_rates_and_vectors_do_not_decay():
    method = Linear()
    groups = {g["name"]: g for g in parameter_groups(method.parameter_groups(), {"matrix": 0.1, "vector": 0.2}, 0.5)}
    assert (groups["matrix"]["lr"], groups["matrix"]["weight_decay"]) == (0.1, 0.5)
    assert (groups["vector"]["lr"], groups["vector"]["weight_decay"]) == (0.2, 0.0)
    optimizer = torch.optim.SGD(list(groups.values()))
    set_rates(optimizer, 0.5)
    set_rates(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.05]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"matrix": 0.1}, r"learning_rates must have exactly the groups \['matrix', 'vector'\], got \['matrix'\]"),
        ({**RATES, "extra": 1.0}, "learning_rates must have exactly the groups"),
        ({"matrix": 0.0, "vector": 1.0}, r"learning_rates\['matrix'\] must be positive and finite, got 0.0"),
        ({"matrix": float("nan"), "vector": 1.0}, "must be positive and finite, got nan"),
    ],
)
def test_bad_rates_are_named(rates, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(Linear().parameter_groups(), rates)


def test_the_schedule_warms_up_peaks_and_ends_near_zero():
    factors = [cosine_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert max(factors) == 1.0
    assert 0 < factors[-1] < 0.01
    assert cosine_factor(0, 0, 0) == cosine_factor(0, 1, 0) == 1.0


def test_training_learns_and_asks_each_style_once(concepts):
    method, shifted = Linear(), load_split("train", STYLES, limit=40)
    for style in ("sketch", "outline"):  # what there is to learn: queries are rolled, targets are not
        shifted.images[style] = shifted.images[style].roll(24, dims=-1)
    before = evaluate(method, shifted, styles=("sketch",)).recall("sketch", 1)
    asked = method.styles_asked
    seen: list[int] = []
    losses = train(
        method,
        shifted,
        Recipe({"matrix": 3e-2, "vector": 1e-2}, steps=120, batch_size=20, styles=("sketch", "text"), jitter=0.0),
        progress=lambda step, loss: seen.append(step),
    )
    after = evaluate(method, shifted, styles=("sketch",)).recall("sketch", 1)
    assert before is not None and after is not None
    assert len(losses) == 120 and seen == list(range(1, 121))
    assert sum(losses[-10:]) < sum(losses[:10])
    assert after.value > before.value + 0.2
    assert method.styles_asked == asked + 2 + 2  # sketch and noto when cached, and again when evaluated


def test_the_style_columns_match_the_drawings(concepts):
    method = Linear()
    data = PairImages.of(method, concepts, STYLES)
    assert data.images.shape[:2] == (4, 40)
    assert data.text_column == 2
    assert torch.equal(data.images[-1], concepts.images["noto"])
    assert data.styles is not None
    assert torch.allclose(data.styles[1, 5], method.style(concepts.images["outline"][5:6] / 255)[0], atol=1e-6)
    assert PairImages.of(Pixels(), concepts, STYLES).styles is None


def test_the_loss_of_a_batch_pairs_every_query_with_its_own_concept(concepts):
    method, recipe = Linear(), Recipe(RATES, styles=STYLES, jitter=0.0, bf16=False)
    data = PairImages.of(method, concepts, STYLES)
    chosen, columns = torch.tensor([3, 8, 1, 6]), torch.tensor([0, 2, 1, 2])
    rows = torch.tensor([3, 1, 8, 6])  # drawn first, written after them
    images = torch.stack([concepts.images["sketch"][3], concepts.images["outline"][1]]) / 255
    words = method.encode_text([concepts.texts[8], concepts.texts[6]])
    query = torch.cat([method.encode_image(images), words])
    target = method.encode_image(concepts.images["noto"][rows] / 255)
    assert torch.allclose(pair_loss(method, data, chosen, columns, recipe, 0), method.loss(query, target), atol=1e-5)


def test_a_run_that_is_resumed_ends_where_an_unbroken_one_does(concepts, tmp_path):
    recipe = Recipe(RATES, steps=12, batch_size=8, styles=STYLES, warmup=3)
    whole = Linear()
    losses = train(whole, concepts, recipe)

    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 7:
            raise Stop

    path = tmp_path / "run" / "checkpoint.pt"
    with pytest.raises(Stop):
        train(Linear(), concepts, recipe, checkpoint=path, checkpoint_every=5, progress=stop)
    resumed = Linear()
    steps: list[int] = []
    again = train(
        resumed, concepts, recipe, checkpoint=path, resume=True, progress=lambda step, loss: steps.append(step)
    )
    assert steps[0] == 6
    assert again == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(resumed.weight, whole.weight, atol=1e-7)
    assert train(Linear(), concepts, recipe, checkpoint=path, resume=True) == pytest.approx(losses, rel=1e-6)


def test_bad_checkpoints_are_named(concepts, tmp_path):
    method = Linear()
    optimizer = torch.optim.AdamW(parameter_groups(method.parameter_groups(), RATES))
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not exist"):
        load_checkpoint(path, method, optimizer)
    progress = Progress(3, [1.0, 2.0, 3.0], best=(0.5, 2), log_size=7, skipped={"a": "b"}, settings={"c": 1})
    save_checkpoint(path, method, optimizer, progress)
    assert load_checkpoint(path, method, optimizer) == progress
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is a damaged checkpoint"):
        load_checkpoint(path, method, optimizer)
    path.write_bytes(whole)
    other = Linear()
    other.shift = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="holds other parameters"):
        load_checkpoint(path, other, optimizer)
    other = Linear()
    other.name = "another"
    with pytest.raises(ValueError, match="must be a checkpoint of method 'another'"):
        load_checkpoint(path, other, optimizer)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(concepts):
    class Diverging(Linear):
        def loss(self, query: Tensor, target: Tensor) -> Tensor:
            return super().loss(query, target) * torch.inf

    with pytest.raises(FloatingPointError, match=r"the loss of 'linear' is inf at step 0: lower its learning rates"):
        train(Diverging(), concepts, Recipe(RATES, steps=2, batch_size=8, styles=STYLES))


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_does_harm(concepts):
    class Root(Linear):
        def loss(self, query: Tensor, target: Tensor) -> Tensor:
            return super().loss(query, target) + (query - query.detach()).sum().sqrt()

    method = Root()
    before = method.weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"the gradient of 'linear' is nan at step 0, its loss \d"):
        train(method, concepts, Recipe(RATES, steps=2, batch_size=8, styles=STYLES))
    assert torch.equal(method.weight, before)


def test_what_cannot_be_trained_is_named(concepts):
    with pytest.raises(ValueError, match="method 'pixels' has nothing to train"):
        train(Pixels(), concepts, Recipe({}, steps=1, styles=STYLES))
    with pytest.raises(ValueError, match="steps must not be negative"):
        train(Linear(), concepts, Recipe(RATES, steps=-1, styles=STYLES))
    silent = Linear()
    silent.encode_text = lambda texts: None  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ValueError, match="styles must not contain 'text' for method 'linear'"):
        train(silent, concepts, Recipe(RATES, steps=9, batch_size=20, styles=STYLES))
    assert train(Linear(), concepts, Recipe(RATES, steps=0, styles=STYLES)) == []


def test_products_in_bf16_change_the_loss_by_their_rounding_alone(concepts, monkeypatch):
    method, sampler = Linear(), PairSampler(concepts, STYLES, 20)
    data, batch = PairImages.of(method, concepts, STYLES), sampler.batch(0)

    def loss(bf16: bool) -> Tensor:
        return pair_loss(method, data, batch.concepts, batch.styles, Recipe(RATES, styles=STYLES, bf16=bf16), 0)

    monkeypatch.setattr("hystar_fast.train.step.multiplies_bf16", lambda device: True)
    exact, rounded = loss(False), loss(True)
    assert exact != rounded
    assert torch.allclose(exact, rounded, rtol=2e-2)
    monkeypatch.setattr("hystar_fast.train.step.multiplies_bf16", lambda device: False)
    assert loss(True) == exact


def test_a_checkpoint_whose_writing_stops_half_way_leaves_the_one_before(tmp_path, monkeypatch):
    method = Linear()
    optimizer = torch.optim.AdamW(parameter_groups(method.parameter_groups(), RATES))
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, method, optimizer, Progress(3, [1.0, 2.0, 3.0]))
    whole = torch.save

    def half(content, file):
        whole(content, file)
        file.truncate(file.tell() // 2)
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, method, optimizer, Progress(4, [1.0, 2.0, 3.0, 4.0]))
    assert load_checkpoint(path, method, optimizer).step == 3


def test_a_constant_schedule_stays_at_the_peak():
    assert [rate_factor("constant", step, 9, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate_factor("constant", 0, 9, 0) == 1.0
    assert rate_factor("cosine", 5, 9, 2) == cosine_factor(5, 9, 2)
