"""Sampling, groups, schedule, loop and checkpoints, with a linear encoder that trains in milliseconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor, nn

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.images import to_uint8
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from hystar_fast.train.loop import train
from hystar_fast.train.optim import cosine_factor, parameter_groups, rate_factor, set_rates
from hystar_fast.train.pairs import PairBatch, PairSampler, TrainingPairs
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import pair_loss
from tests.support.linear_method import RATES, Linear

STYLES = ("sketch", "outline", "text")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_emoji("train").select(limit=40)


@pytest.fixture(scope="module")
def pairs(images: ImageSet) -> TrainingPairs:
    return TrainingPairs(images, STYLES, Linear().resize)


def test_a_batch_holds_different_items_in_styles_that_they_have(pairs):
    sampler = PairSampler(pairs, 16, seed=3)
    seen = set()
    for step in range(20):
        batch = sampler.batch(step)
        assert len(set(batch.items.tolist())) == 16
        for item, style in zip(batch.items.tolist(), batch.styles.tolist(), strict=True):
            assert item in pairs.items_with(STYLES[style]).tolist()
            seen.add(style)
    assert seen == {0, 1, 2}


def test_an_epoch_visits_every_item_once_and_epochs_differ(pairs):
    sampler = PairSampler(pairs, 20, seed=1)
    assert sampler.batches_per_epoch == 2
    epochs = [torch.cat([sampler.batch(2 * e).items, sampler.batch(2 * e + 1).items]) for e in (0, 1)]
    assert all(sorted(epoch.tolist()) == list(range(40)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_batch_depends_on_seed_and_step_only(pairs):
    one, two, other = (PairSampler(pairs, 8, seed=s) for s in (5, 5, 6))
    torch.rand(3)
    for step in (7, 0):
        assert torch.equal(one.batch(step).items, two.batch(step).items)
        assert torch.equal(one.batch(step).styles, two.batch(step).styles)
    assert not torch.equal(one.batch(0).items, other.batch(0).items)


def test_bad_pairs_are_rejected(images, pairs):
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        PairSampler(pairs, 1)
    with pytest.raises(ValueError, match="emoji must have at least 2 gallery pictures with a query, got 1"):
        PairSampler(TrainingPairs(images.select(limit=1), STYLES), 8)
    with pytest.raises(ValueError, match="style must be one of"):
        TrainingPairs(images, ("cubism",))
    missing = 40 - len(images.of_style("outline"))
    assert missing and len(TrainingPairs(images, ("outline",))) == 40 - missing


def test_each_group_has_its_rate_and_vectors_have_no_weight_decay():
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
def test_bad_rates_are_rejected(rates, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(Linear().parameter_groups(), rates)


def test_the_schedule_warms_up_peaks_and_ends_near_zero():
    factors = [cosine_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert max(factors) == 1.0
    assert 0 < factors[-1] < 0.01
    assert cosine_factor(0, 0, 0) == cosine_factor(0, 1, 0) == 1.0


def shift_queries(images: ImageSet) -> ImageSet:
    """Return the data set with every query shifted to the right, and the gallery unchanged."""

    def read(record: Record) -> Image.Image:
        picture = images.read(record)
        return picture if record.style == "noto" else ImageChops.offset(picture, 24, 0)

    return replace(images, read=read)


def test_training_learns_and_computes_each_style_once(images):
    method, shifted = Linear(), shift_queries(images)
    before = evaluate(method, shifted, kinds=("sketch",)).ranks.recall(["sketch"], 1)
    computed = method.style_calls
    seen: list[int] = []
    losses = train(
        method,
        shifted,
        Recipe({"matrix": 3e-2, "vector": 1e-2}, steps=120, batch_size=20, styles=("sketch", "text"), jitter=0.0),
        progress=lambda step, loss: seen.append(step),
    )
    after = evaluate(method, shifted, kinds=("sketch",)).ranks.recall(["sketch"], 1)
    assert before is not None and after is not None
    assert len(losses) == 120 and seen == list(range(1, 121))
    assert sum(losses[-10:]) < sum(losses[:10])
    assert after.value > before.value + 0.2
    assert method.style_calls == computed + 2 + 2  # sketch and noto when preloaded, and again when evaluated


def test_preloading_changes_no_picture_and_adds_its_style(images):
    method = Linear()
    pairs = TrainingPairs(images, STYLES, method.resize)
    wanted = torch.tensor([5, 9, 5]), torch.tensor([0, 1, -1]), torch.zeros(3)
    read = pairs.load(*wanted)
    assert read.style is None and pairs.text_index == 2
    pairs.preload(method)
    found = pairs.load(*wanted)
    assert torch.equal(found.images, read.images) and bool(found.readable.all())
    assert torch.equal(found.images[2], to_uint8(images.read(images.gallery[5])))
    torch.testing.assert_close(found.style, method.style(found.images))
    plain = TrainingPairs(images, STYLES, method.resize)
    plain.preload(Pixels())
    assert plain.is_preloaded and plain.load(*wanted).style is None


def test_a_data_set_beyond_the_limit_is_not_preloaded(images):
    pairs = TrainingPairs(images, ("sketch",), Linear().resize)
    size = 80 * 3 * 64 * 64
    pairs.preload(Linear(), limit=size - 1)
    assert not pairs.is_preloaded
    pairs.preload(Linear(), limit=size)
    assert pairs.is_preloaded


def test_the_loss_of_a_batch_pairs_every_query_with_its_own_item(images, pairs):
    method, recipe = Linear(), Recipe(RATES, jitter=0.0, bf16=False)
    outlined = pairs.items_with("outline").tolist()[0]
    batch = PairBatch(torch.tensor([3, 8, outlined, 6]), torch.tensor([0, 2, 1, 2]), torch.zeros(4))
    drawn = {record.path: to_uint8(images.read(record)) for record in images.records}
    ids = [images.gallery[item].instance for item in (3, outlined, 8, 6)]  # pictures first, then texts
    queries = torch.stack([drawn[f"sketch/{ids[0]}"], drawn[f"outline/{ids[1]}"]])
    words = method.encode_text([*pairs.texts[8], *pairs.texts[6]])
    query = torch.cat([method.encode_image(queries), words])
    target = method.encode_image(torch.stack([drawn[f"noto/{instance}"] for instance in ids]))
    assert torch.allclose(pair_loss(method, pairs, batch, recipe, 0), method.loss(query, target), atol=1e-5)


def test_a_resumed_run_ends_as_an_uninterrupted_one(images, tmp_path):
    recipe = Recipe(RATES, steps=12, batch_size=8, styles=STYLES, warmup=3)
    whole = Linear()
    losses = train(whole, images, recipe)

    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 7:
            raise Stop

    path = tmp_path / "run" / "checkpoint.pt"
    with pytest.raises(Stop):
        train(Linear(), images, recipe, checkpoint=path, checkpoint_every=5, progress=stop)
    resumed = Linear()
    steps: list[int] = []
    again = train(resumed, images, recipe, checkpoint=path, resume=True, progress=lambda step, loss: steps.append(step))
    assert steps[0] == 6
    assert again == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(resumed.weight, whole.weight, atol=1e-7)
    assert train(Linear(), images, recipe, checkpoint=path, resume=True) == pytest.approx(losses, rel=1e-6)


def test_bad_checkpoints_are_rejected(images, tmp_path):
    method = Linear()
    optimizer = torch.optim.AdamW(parameter_groups(method.parameter_groups(), RATES))
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not exist"):
        load_checkpoint(path, method, optimizer)
    progress = Progress(
        3,
        [1.0, 2.0, 3.0],
        best=(0.5, 2),
        log_size=7,
        log_sha256="0a",
        skipped={"a": "b"},
        settings={"c": 1},
        identity={"d": [2]},
    )
    save_checkpoint(path, method, optimizer, progress)
    assert load_checkpoint(path, method, optimizer) == progress
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"must be a whole checkpoint, but .* is damaged"):
        load_checkpoint(path, method, optimizer)
    path.write_bytes(whole)
    other = Linear()
    other.shift = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="must hold the parameters of method 'linear', got others"):
        load_checkpoint(path, other, optimizer)
    other = Linear()
    other.name = "another"
    with pytest.raises(ValueError, match="must be a checkpoint of method 'another'"):
        load_checkpoint(path, other, optimizer)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(images):
    class Diverging(Linear):
        def loss(self, query: Tensor, target: Tensor) -> Tensor:
            return super().loss(query, target) * torch.inf

    with pytest.raises(FloatingPointError, match=r"the loss of 'linear' is inf at step 0: lower its learning rates"):
        train(Diverging(), images, Recipe(RATES, steps=2, batch_size=8, styles=STYLES))


def test_a_gradient_that_is_not_finite_stops_the_run_before_any_update(images):
    class Root(Linear):
        def loss(self, query: Tensor, target: Tensor) -> Tensor:
            return super().loss(query, target) + (query - query.detach()).sum().sqrt()

    method = Root()
    before = method.weight.detach().clone()
    with pytest.raises(
        FloatingPointError, match=r"the gradient of 'linear' at step 0, whose loss is \d.* is not finite"
    ):
        train(method, images, Recipe(RATES, steps=2, batch_size=8, styles=STYLES))
    assert torch.equal(method.weight, before)


def test_invalid_training_runs_are_rejected(images):
    with pytest.raises(ValueError, match="method must have trainable parameters, got 'pixels'"):
        train(Pixels(), images, Recipe({}, steps=1, styles=STYLES))
    with pytest.raises(ValueError, match="steps must not be negative"):
        train(Linear(), images, Recipe(RATES, steps=-1, styles=STYLES))
    textless = Linear()
    textless.encode_text = lambda texts: None  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ValueError, match="styles must not contain 'text' for method 'linear'"):
        train(textless, images, Recipe(RATES, steps=9, batch_size=20, styles=STYLES))
    assert train(Linear(), images, Recipe(RATES, steps=0, styles=STYLES)) == []


def test_bf16_products_change_the_loss_only_by_rounding(pairs, monkeypatch):
    method, batch = Linear(), PairSampler(pairs, 20).batch(0)

    def loss(bf16: bool) -> Tensor:
        return pair_loss(method, pairs, batch, Recipe(RATES, bf16=bf16), 0)

    monkeypatch.setattr("hystar_fast.train.step.multiplies_bf16", lambda device: True)
    exact, rounded = loss(False), loss(True)
    assert exact != rounded
    assert torch.allclose(exact, rounded, rtol=2e-2)
    monkeypatch.setattr("hystar_fast.train.step.multiplies_bf16", lambda device: False)
    assert loss(True) == exact


def test_an_interrupted_save_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    method = Linear()
    optimizer = torch.optim.AdamW(parameter_groups(method.parameter_groups(), RATES))
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, method, optimizer, Progress(3, [1.0, 2.0, 3.0]))
    save = torch.save

    def save_half(content, file):
        save(content, file)
        file.truncate(file.tell() // 2)
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, method, optimizer, Progress(4, [1.0, 2.0, 3.0, 4.0]))
    assert load_checkpoint(path, method, optimizer).step == 3


def test_a_constant_schedule_stays_at_the_peak():
    assert [rate_factor("constant", step, 9, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate_factor("constant", 0, 9, 0) == 1.0
    assert rate_factor("cosine", 5, 9, 2) == cosine_factor(5, 9, 2)
