"""``hystar-fast domains``: the whole matrix, its file, what is refused, and definitions that fit a table."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest

from hystar_fast.data.open import open_images
from hystar_fast.experiments.embedded_runs import frozen
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.domains import evaluate_domains
from tests.support.cli import refused, run
from tests.support.domain_trees import PACS, tree


def test_it_prints_and_writes_every_pair(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ("cartoon", "photo", "sketch"))
    done = run("domains", "--data", f"folders:{root}", "--method", "frozen", "--metrics", "mAP@all,R@1",
               "--device", "cpu", "--output", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "domains.json").read_text())
    images, metrics = open_images(f"folders:{root}"), [Metric.parse("mAP@all"), Metric.parse("R@1")]
    truth = evaluate_domains(frozen(), images, metrics)
    assert [*found["pairs"]] == [f"{a} → {b}" for a, b in permutations(images.styles, 2)]
    for (asks, answers), measured in truth.measured.items():
        entry = found["pairs"][f"{asks} → {answers}"]
        assert entry["n"] == 6 and entry["gallery"] == 6
        for metric in metrics:
            interval = measured.interval(metric)
            assert entry[str(metric)]["value"] == pytest.approx(100 * interval.value, abs=0.01)
            assert str(interval) in done.output
    assert found["averages"]["photo"]["R@1"] == pytest.approx(100 * truth.average("photo", metrics[1]), abs=0.01)
    assert "frozen on" in done.output and ": mAP@all" in done.output and ": R@1" in done.output
    done = run("domains", "--data", f"folders:{root}", "--method", "pixels", "--style", "photo", "--style", "sketch",
               "--metrics", "R@1", "--output", tmp_path / "out", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [*json.loads(done.stdout)["pairs"]] == ["photo → sketch", "sketch → photo"]
    assert json.loads((tmp_path / "out" / "domains-1.json").read_text())["method"] == "frozen"


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ("photo", "sketch"))

    def said(*words: object) -> str:
        return refused("domains", "--data", root, "--output", tmp_path / "out", *words)

    assert "--split must be one of ('val', 'test', 'all'), got 'train'" in said(
        "--method", "pixels", "--split", "train"
    )
    assert "--style must be at least 2 different ones" in said("--method", "pixels", "--style", "photo")
    assert "--metrics must name its definition: mAP@200:positives" in said("--method", "pixels", "--metrics", "mAP@200")
    assert "--method must be left out if --adapter is given" in said("--method", "hog", "--adapter", tmp_path)
    assert "--identify must be given without" in said("--identify", "tki:table3", "--style", "photo")
    assert "--identify must be 'tki:table3', got 'tki:table5'" in said("--identify", "tki:table5")
    assert "--data must have the four domains of PACS or of Office-Home, got" in said("--identify", "tki:table3")


def test_a_tree_like_pacs_identifies_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", PACS, each=2)
    done = run("domains", "--data", f"pacs:{root}", "--identify", "tki:table3", "--device", "cpu",
               "--output", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "none identified: no pair of definitions of one framing is within 0.5 points" in " ".join(
        done.output.split()
    )
    found = json.loads((tmp_path / "out" / "identify.json").read_text())
    assert found["identified"] is None and len(found["differences"]) == 2 * (8 + 4)
    assert {entry["framing"] for entry in found["differences"]} == {"crop", "squash"}
