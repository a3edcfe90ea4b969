"""The pages of ACNet and FGAN on the embedded drawings: every method, way and part has its figures and differences."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import acnet_demo  # noqa: E402
import unseen_demo  # noqa: E402

from hystar_fast.experiments.acnet_runs import acnet_parts  # noqa: E402
from hystar_fast.experiments.embedded_runs import frozen  # noqa: E402
from hystar_fast.methods.suite import create_method  # noqa: E402
from hystar_fast.train.settings import read_settings  # noqa: E402


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take methods without training; returns the folders that were asked for."""
    asked: list[str] = []

    def take(config: str, changes: list[str], folder: Path) -> Any:
        asked.append(folder.name.rpartition("-")[0])
        folder.mkdir(parents=True, exist_ok=True)
        if config == "emoji":
            return frozen()
        settings = read_settings(config, changes)
        assert settings.own is not None
        return create_method("acnet", settings.model, settings=settings.own.to_dict())

    monkeypatch.setattr(unseen_demo, "trained", take)
    return asked


def test_every_method_way_and_part_has_its_figures(tmp_path: Path, untrained: list[str]) -> None:
    small = acnet_parts()["unseen"]  # the demonstration has two larger parts too
    variants = {"acnet without identity": ("acnet.gamma_identity=0",)}
    demo = replace(acnet_demo.ACNET_DEMO, parts=lambda: {"unseen-all": small}, variants=variants)
    unseen_demo.run_demo(demo, 2, 0, tmp_path / "out", tmp_path / "runs")
    runs = [f"{name}-{seed}" for name in ("acnet", "acnet without identity", "lora", "hystar") for seed in (0, 1)]
    assert untrained == runs
    found = json.loads((tmp_path / "out" / "acnet.json").read_text())
    rows = {(row["method"], row["compared by"]): row for row in found["rows"]}
    ways = [("frozen", "the drawing"), ("acnet", "the drawing"), ("acnet", "G(drawing)")]
    others = [("lora", "the drawing"), ("hystar", "the drawing")]
    variant = [("acnet without identity", way) for way in ("the drawing", "G(drawing)")]
    assert [*rows] == [*ways, *variant, *others]
    base = rows["frozen", "the drawing"]["unseen-all"]
    lora = rows["lora", "the drawing"]["unseen-all"]
    own = rows["acnet", "G(drawing)"]["unseen-all"]
    for figure in ("mAP@all", "Prec@5:gallery", "R@1"):
        # LoRA stands in here for the frozen backbone itself, so their difference is nothing.
        assert lora[figure] == base[figure]
        assert lora[f"{figure} - frozen"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        lost = own[f"{figure} - frozen"]
        assert lost["value"] == pytest.approx(own[figure]["value"] - base[figure]["value"], abs=0.02)
        assert own[f"{figure} - lora"] == lost == own[f"{figure} - hystar"]
        assert f"{figure} - the drawing" in own
        # Without training the variant is the same network, compared in the same way.
        assert own[f"{figure} - acnet without identity"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert f"{figure} - lora" not in lora
    assert own["mAP@all"]["value"] >= 0.5 * found["chance of mAP@all"]["unseen-all"]
    page = (tmp_path / "out" / "acnet.md").read_text()
    assert page.count("| acnet | G(drawing) |") == 1
    assert "Not run yet" not in page
    with Image.open(tmp_path / "out" / "acnet_answers.png") as picture:
        assert picture.width > 900


def test_a_run_that_was_stopped_has_no_seconds(tmp_path: Path, untrained: list[str]) -> None:
    folder = tmp_path / "lora-0"
    assert unseen_demo._trained("emoji", [], folder)[1] is not None
    (folder / "seconds.json").unlink()
    assert unseen_demo._trained("emoji", [], folder)[1] is None
    assert unseen_demo._seconds(None) == "seconds not known, as the run was stopped in between"
