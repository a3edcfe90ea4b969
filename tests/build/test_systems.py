"""The table of all systems: each is trained by its settings, the best of three is taken, and all answer one task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import systems  # noqa: E402

from hystar_fast.data.open import open_images  # noqa: E402
from hystar_fast.experiments.embedded_runs import frozen  # noqa: E402
from hystar_fast.methods.interface import Method  # noqa: E402
from hystar_fast.methods.suite import create_method, tiny_config  # noqa: E402
from hystar_fast.retrieval.definitions import Metric  # noqa: E402
from hystar_fast.retrieval.evaluate import evaluate  # noqa: E402
from hystar_fast.train.settings import read_settings  # noqa: E402


def _call(*words: object) -> None:
    done = CliRunner().invoke(systems.app, [str(word) for word in words])
    assert done.exception is None and done.exit_code == 0, done.output


def test_the_settings_of_every_system_can_be_read_and_differ() -> None:
    for name, system in systems.SYSTEMS.items():
        assert len(system.candidates) == (3 if system.config else 0), "one budget of tuning for all"
        read = [read_settings(system.config, [*system.changes, *own]).to_dict() for own in system.candidates]
        assert len({json.dumps(one) for one in read}) == len(read)
        for one in read:
            assert one["model"]["method"] == name and one["data"]["source"] == "emoji"
            assert name == "tki" or one["data"]["styles"] == ["sketch"], "all see the same drawings"


def test_the_parts_are_seen_and_unseen_subgroups() -> None:
    parts = systems.systems_parts()
    categories = {name: {record.category for record in images.records} for name, images in parts.items()}
    assert not categories["seen"] & categories["unseen"]
    assert categories["seen"] <= categories["test"] <= categories["seen"] | categories["unseen"]
    sizes = {name: (len(images.of_style("sketch")), len(images.gallery)) for name, images in parts.items()}
    assert sizes == {"unseen": (324, 324), "seen": (245, 245), "test": (310, 310)}


def test_no_concept_that_is_measured_chooses_a_setting() -> None:
    tuning = systems.tuning_part()
    chooses = {record.instance for record in tuning.records}
    measured = {record.instance for images in systems.systems_parts().values() for record in images.records}
    assert (len(tuning.gallery), chooses & measured) == (126, set())


def test_figures_are_those_of_eval() -> None:
    images = open_images("emoji", "test").select(limit=80)
    method = frozen()
    found = systems.measured(method, images, "original")
    for task, name in (("category", "mAP@all"), ("instance", "R@1")):
        metric = Metric.parse(name)
        judged = evaluate(method, images, task=task, metrics=[metric])
        (sketches,) = (kind for kind in judged.kinds if kind.kind == "sketch")
        interval = sketches.values[name]
        assert interval is not None and found[name].mean().item() == pytest.approx(interval.value)


def test_the_best_setting_of_each_is_taken_and_every_row_has_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def take(config: str, changes: list[str], folder: Path) -> Method:
        asked.append((config, *changes))
        return frozen() if "optim.learning_rate=0.003" in changes else create_method("pixels", tiny_config())

    few = open_images("emoji", "test").select(limit=40)
    monkeypatch.setattr(systems, "trained", take)
    monkeypatch.setattr(systems, "open_images", lambda source, split: few)
    monkeypatch.setattr(systems, "training_drawings", lambda styles: few)
    monkeypatch.setattr(systems, "systems_parts", lambda: dict.fromkeys(("unseen", "seen", "test"), few))
    monkeypatch.setattr(systems, "SYSTEMS", {name: systems.SYSTEMS[name] for name in ("frozen", "mean shift", "lora")})
    _call("tune", "--runs", tmp_path, "--output", tmp_path)
    tuning = json.loads((tmp_path / "systems.json").read_text())["tuning"]
    assert tuning["chosen"] == {"lora": "optim.learning_rate=0.003"}
    assert len(asked) == 3 and all("run.seed=0" in changes for changes in asked)

    asked.clear()
    _call("--runs", tmp_path, "--output", tmp_path, "--seeds", 2)
    assert [changes[-1] for changes in asked] == ["run.seed=0", "run.seed=1"]
    assert all("optim.learning_rate=0.003" in changes for changes in asked)
    found = json.loads((tmp_path / "systems.json").read_text())
    rows = found["rows"]
    assert found["tuning"] == tuning
    assert [*rows] == ["frozen", "mean shift", "lora"]
    for row in rows.values():
        assert row["bytes of a picture in the index"] == 4 * 192 and row["CPU milliseconds of a query"] > 0
        for part in ("unseen", "seen", "test"):
            assert 0 <= row[part]["mAP@all"]["low"] <= row[part]["mAP@all"]["value"] <= 100
    # LoRA stands in here for the frozen backbone itself, so their difference is nothing
    assert rows["lora"]["test"]["R@1 - frozen"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert rows["mean shift"]["test"]["mAP@all - frozen"]["value"] != 0
    lines = systems.table({"rows": rows})
    assert len(lines) == 5 and all(line.count("|") == 9 for line in lines)


def test_the_page_has_the_table_of_the_committed_figures() -> None:
    found = json.loads((ROOT / "docs/results/systems.json").read_text())
    assert [*found["rows"]] == [*systems.SYSTEMS] and found["seeds"] == 3
    assert "\n".join(systems.table(found)) in (ROOT / "docs/systems.md").read_text()
    for name, row in found["rows"].items():
        assert " ".join(row["settings"]) == found["tuning"]["chosen"].get(name, "")
