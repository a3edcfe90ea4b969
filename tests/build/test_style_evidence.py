"""The seven ways that may make knowing the style help: each trains what it says, and is compared with its controls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import style_evidence  # noqa: E402

from hystar_fast.experiments.experiment_settings import ExperimentSettings, read_experiment  # noqa: E402
from hystar_fast.experiments.splits import open_splits  # noqa: E402
from hystar_fast.experiments.variants import create_variant  # noqa: E402
from hystar_fast.methods.hystar_method import create_criterion  # noqa: E402
from hystar_fast.models.hystar import Hystar  # noqa: E402
from hystar_fast.train.pairs import TrainingPairs  # noqa: E402
from tests.support.small_tiny import shrink_tiny  # noqa: E402

RATES = {"static": {"static": 0.06}, "hystar": {"static": 0.06, "dynamic": 1e-2}}
SMALL = ["model.pretrained=random", "data.limit=24", "training.steps=2", "training.warmup=0", "training.batch_size=16"]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> ExperimentSettings:
    shrink_tiny(monkeypatch)
    return read_experiment("lean", SMALL)


def _hystar(settings: ExperimentSettings) -> Any:
    return create_variant("hystar", settings.config(), seed=0)


def test_every_way_trains_and_stands_beside_the_comparison(
    settings: ExperimentSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, int]] = []
    trained: dict[str, tuple[int, float]] = {}
    train = style_evidence._train

    def load(name: str, seed: int, _: ExperimentSettings) -> Any:
        loaded.append((name, seed))
        return create_variant(name, settings.config(), seed=seed)

    def watch(method: Any, way: Any, rates: Any, given: ExperimentSettings, seed: int) -> None:
        before = [p.clone() for group in method.parameter_groups().values() for p in group]
        train(method, way, rates, given, seed)
        after = [p for group in method.parameter_groups().values() for p in group]
        moved = min(float((a - b).detach().abs().max()) for a, b in zip(after, before, strict=True))
        trained[next(name for name, other in style_evidence.WAYS.items() if other is way)] = way.steps, moved
        assert rates == RATES[way.of]

    monkeypatch.setattr(style_evidence, "trained_method", load)
    monkeypatch.setattr(style_evidence, "_train", watch)
    monkeypatch.setattr(style_evidence, "read_experiment", lambda *_: settings)
    (tmp_path / "tuning.json").write_text(json.dumps({"chosen": RATES}))
    for _ in range(2):  # the second call finds every run
        style_evidence.compare(tmp_path, seeds=1, steps=0, runs=tmp_path / "runs", output=tmp_path)
    assert loaded == [(name, 0) for name in style_evidence.COMPARED]
    assert {name: steps for name, (steps, _) in trained.items()} == {
        name: 3 if "three" in name else 1 for name in style_evidence.WAYS
    }
    assert all(moved > 0 for _, moved in trained.values()), "a parameter did not train"
    found = json.loads((tmp_path / "style_evidence.json").read_text())
    assert [*found["rows"]] == [*style_evidence.COMPARED, *style_evidence.WAYS]
    assert found["rows"]["static"]["minus static"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert len(style_evidence.table(found)) == 2 + len(found["rows"])


def test_half_of_the_styles_are_dropped_in_training_alone(settings: ExperimentSettings) -> None:
    method = style_evidence.DroppedStyle(_hystar(settings).model)
    images, style = torch.rand(40, 3, 64, 64), torch.nn.functional.normalize(torch.randn(40, 32), dim=-1)
    method.train(False)
    with torch.no_grad():
        whole = method.encode_image(images, style)
        without = method.encode_image(images, torch.zeros_like(style))
        method.train(True)
        found = method.encode_image(images, style)
    dropped = (found - without).abs().amax(1) < 1e-6
    assert 8 <= int(dropped.sum()) <= 32
    torch.testing.assert_close(found[~dropped], whole[~dropped])


def test_the_classifier_reads_the_style(settings: ExperimentSettings) -> None:
    method = style_evidence.classified(_hystar(settings), settings)
    assert isinstance(method.model, Hystar)
    drawn = TrainingPairs(open_splits(settings).training, (), method.resize)
    items = drawn.items_with("lowres")
    images = drawn.load(items, torch.full_like(items, drawn.styles.index("lowres")), torch.zeros(len(items))).images
    z = method.style(images)
    assert z is not None and z.shape[1] == len(drawn.styles) + 1
    assert (z.argmax(1) == drawn.styles.index("lowres")).float().mean() > 0.8
    assert {network.style_dim for network in method.model.hypernetworks.values()} == {z.shape[1]}


def test_the_penalty_is_the_relative_size_of_the_offsets(settings: ExperimentSettings) -> None:
    method = style_evidence.SmallOffsets(_hystar(settings).model)
    images = torch.rand(4, 3, 64, 64)
    embedded = method.encode_image(images)
    plain = create_criterion(settings.config())(embedded[:2], embedded[2:])
    sizes = []
    for number, network in method.model.hypernetworks.items():
        s = method.model.backbone.blocks[int(number) - 1].attn.in_proj.s
        sizes.append(network(method.style(images)).square().mean() / s.square().mean())
    expected = plain + style_evidence.PENALTY * torch.stack(sizes).mean()
    for loss in (method.loss, method.criterion):
        torch.testing.assert_close(loss(embedded[:2], embedded[2:]), expected)
    assert expected > plain


def test_a_picture_is_in_a_batch_with_all_its_styles(settings: ExperimentSettings) -> None:
    pairs = TrainingPairs(open_splits(settings).training)
    batch = style_evidence.EveryStyle(pairs, 16, 0).batch(3)
    assert len(batch.items) == 16
    for item in batch.items.unique()[:-1].tolist():
        styles = batch.styles[batch.items == item].tolist()
        has = [index for index, style in enumerate(pairs.styles) if item in pairs.items_with(style)]
        assert sorted(styles) == has or item == batch.items[-1]
