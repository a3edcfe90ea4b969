"""The page of TKI on the embedded drawings: every method beside it, and the picture of its stages."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import tki_demo  # noqa: E402
import unseen_demo  # noqa: E402

from hystar_fast.data.image_set import ImageSet  # noqa: E402
from hystar_fast.experiments.embedded_runs import frozen  # noqa: E402
from hystar_fast.experiments.tki_runs import ALL_PAIRS, tki_figures, tki_parts  # noqa: E402
from hystar_fast.methods.suite import create_method, tiny_config  # noqa: E402
from hystar_fast.methods.tki.tki_method import TKI  # noqa: E402
from hystar_fast.retrieval.definitions import Metric  # noqa: E402
from hystar_fast.retrieval.domains import evaluate_domains  # noqa: E402
from hystar_fast.train.settings import read_settings  # noqa: E402

NAMES = "red apple\nboat\ncat\ndog face\nhouse\npizza"
SMALL = {"words": 3, "steps_expansion": 2, "steps_aggregation": 2}


def small_parts() -> dict[str, ImageSet]:
    return {"test": tki_parts()["unseen"].select(limit=12)}


def small_tki(**settings: Any) -> TKI:
    made = create_method("tki", tiny_config(), seed=0, settings={**SMALL, **settings, "names": NAMES})
    assert isinstance(made, TKI)
    return made


@pytest.mark.slow
def test_the_page_has_every_method_and_its_steps_are_those_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[str]] = {}

    def take(config: str, changes: list[str], folder: Path) -> Any:
        asked[folder.name.rpartition("-")[0].rpartition("-")[0]] = changes
        folder.mkdir(parents=True, exist_ok=True)
        settings = read_settings(config, changes)  # refuses a setting that the method does not have
        return frozen() if settings.own is None else small_tki()

    monkeypatch.setattr(unseen_demo, "trained", take)
    demo = replace(tki_demo.TKI_DEMO, parts=small_parts)
    unseen_demo.run_demo(demo, 1, 3, tmp_path / "out", tmp_path / "runs")
    assert [*asked] == ["tki", "wccn", "tki geometry=euclidean", "tki start=random", "mean_shift", "lora", "hystar"]
    assert "optim.steps=3" in asked["hystar"] and not any("steps" in change for change in asked["mean_shift"])
    assert {"tki.steps_expansion=3", "tki.steps_aggregation=1"} <= {*asked["wccn"]}
    assert {"tki.steps_expansion=3", "tki.steps_aggregation=3"} <= {*asked["tki"]}
    found = json.loads((tmp_path / "out" / "tki.json").read_text())
    rows = {row["method"]: row["test"] for row in found["rows"]}
    base = tki_figures(frozen(), small_parts()["test"])
    assert rows["frozen"]["mAP@all"]["value"] == pytest.approx(100 * base["mAP@all"].mean().item(), abs=0.006)
    # an untrained head keeps every direction, and the others stand in for the frozen backbone here
    assert all(row[name]["value"] == rows["frozen"][name]["value"] for row in rows.values() for name in demo.figures)
    assert rows["tki"]["mAP@all - wccn"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    page = (tmp_path / "out" / "tki.md").read_text()
    assert "mean shift, LoRA and\nHystar train on drawings" in page and "Not run yet" not in page
    with Image.open(tmp_path / "out" / "tki_stages.png") as picture:
        assert picture.width > 1000


def test_the_stages_are_those_of_the_run_and_begin_at_the_frozen_backbone() -> None:
    images = small_parts()["test"]
    found = tki_demo.trace(small_tki(), images)
    assert len(found.losses) == 2 and {"category", "diversity"} <= {*found.losses[0]}
    before, after = found.cosines
    assert (
        before.shape == (3, 3) and torch.allclose(before.diagonal(), torch.ones(3)) and not torch.equal(before, after)
    )
    assert [*found.looks] == ["clip", "random"] and [*found.looks["clip"]] == [0, 1, 2]
    score, precision = found.looks["clip"][0]
    assert precision == pytest.approx(tki_figures(frozen(), images)["mAP@all"].mean().item(), abs=1e-6)
    assert 0 < score <= 1 and found.looks["random"][0] != (score, precision)


def test_a_picture_of_a_style_asks_every_other_style_and_counts_once() -> None:
    images = small_parts()["test"]
    kept = tuple(record for record in images.records if record.style != "outline")  # which some concepts lack
    images = replace(images, records=kept)
    found = tki_figures(frozen(), images)[ALL_PAIRS]
    matrix = evaluate_domains(frozen(), images, [Metric.parse("mAP@all")])
    assert len(found) == len(images.records) and found.isfinite().all()
    means = [matrix.average(style, Metric.parse("mAP@all")) for style in matrix.styles]
    sizes = [len(images.of_style(style)) for style in matrix.styles]
    weighted = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
    assert found.mean().item() == pytest.approx(weighted, abs=1e-9)
