"""Tables of MA-SBIR on trees laid out like Sketchy: what is trained, measured, kept and printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hystar_fast.data.open import open_images
from hystar_fast.experiments.published_tables import published_table
from hystar_fast.experiments.sketch_tables import SKETCH_TABLES, split_of
from hystar_fast.train.settings import read_settings
from tests.support.cli import refused, run
from tests.support.picture_trees import picture

pytestmark = pytest.mark.usefixtures("narrow_tiny")
UNSEEN = (Path(__file__).parents[2] / "hystar_fast/data/category_lists/sketchy21.txt").read_text().splitlines()
NAMES = [name.strip() for name in UNSEEN if name.strip() and not name.startswith("#")]
SEEN = ("ant", "apple", "bear", "blimp")
SMALL = ("--steps", 2, "--set", "model.backbone=tiny", "--set", "model.pretrained=random", "--set", "run.device=cpu")


def sketchy_ext(root: Path) -> Path:
    """Write Sketchy Extended in its layout with one or two small random pictures a category and style."""
    for number, name in enumerate((*NAMES, *SEEN)):
        for i in range(2):
            picture(root / "extended_photo" / name / f"n{number}_{i}.jpg", seed=4 * number + i)
        picture(root / "sketch/tx_000000000000" / name / f"n{number}_0-1.png", seed=4 * number + 2)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert len(NAMES) == 21
    return sketchy_ext(tmp_path_factory.mktemp("data") / "Sketchy")


@pytest.mark.parametrize("number", SKETCH_TABLES)
def test_the_settings_of_every_row_can_be_read(number: int) -> None:
    how, table = SKETCH_TABLES[number], published_table("ma_sbir", number)
    assert {*how.rows} == {row for row in table.rows if row.startswith("Ours")} or {*how.rows} == {*table.rows}
    for changes, _ in how.rows.values():
        read_settings(how.config, list(changes))
    assert {column.split()[-1] for column in table.columns} <= {*how.columns}


def test_a_tree_has_the_split_of_its_unseen_categories(tree: Path) -> None:
    images = open_images(f"folders:{tree}")
    split, columns = split_of(published_table("ma_sbir", 1), images)
    assert split.name == "sketchy21" and columns == ("S mAP@200", "S Prec@200") and len(split.unseen) == 21
    few = images.select(categories=SEEN)
    with pytest.raises(ValueError, match="data must have the unseen categories of sketchy21 or tuberlin30-authors or"):
        split_of(published_table("ma_sbir", 1), few)


def test_table_1_has_ours_and_the_controls_beside_the_paper(tree: Path, tmp_path: Path) -> None:
    words = ("experiments", "reproduce", "ma_sbir:table1", "--data", f"folders:{tree}", *SMALL, "--output", tmp_path)
    done = run(*words)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "sketchy21: 21 unseen categories, 21 queries (published: 12,694, another number), 42 gallery" in text
    assert "split sketchy21" in text and "mAP@200:capped:interpolated" in text and "not run: SEM-PCYC" in text
    stored = json.loads((tmp_path / "ma_sbir-table1-sketches.json").read_text())
    ours = {row["row"]: row["ours"] for row in stored["rows"] if "ours" in row}
    assert [*ours] == ["Ours [clip]", "Ours [original]", "Ours [converted]"]
    controls = ["frozen", "frozen, mean shift", "Ours [clip], mean shift", "Ours [original], mean shift"]
    assert [row["row"] for row in stored["beside"]] == controls
    names = ["mAP@200:capped:interpolated", "mAP@200:capped", "Prec@200:shortened"]
    for row in (*ours.values(), *(row["ours"] for row in stored["beside"])):
        assert [*row] == names and all(0 <= row[name]["low"] <= row[name]["value"] <= 100 for name in names)
    assert ours["Ours [original]"] != ours["Ours [converted]"], "two rows of one training"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("adapter.safetensors")}
    again = run(*words)
    assert again.exit_code == 0 and len(written) == 2
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("adapter.safetensors")}
    assert json.loads((tmp_path / "ma_sbir-table1-sketches.json").read_text())["rows"] == stored["rows"]


def test_table_3_has_both_galleries(tree: Path, tmp_path: Path) -> None:
    words = ("experiments", "reproduce", "ma_sbir:table3", "--data", f"folders:{tree}", *SMALL, "--output", tmp_path)
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "42 gallery pictures (published: 2,100, another number)" in " ".join(done.output.split())
    stored = json.loads((tmp_path / "ma_sbir-table3-sketches.json").read_text())
    ours = {row["row"]: row["ours"] for row in stored["rows"] if "ours" in row}
    assert [*ours] == ["Ours [original]", "Ours [converted]"]
    for row in ours.values():
        assert [*row] == ["R@1", "R@5", "R@1 of all", "R@5 of all"]
        assert row["R@1"]["value"] >= row["R@1 of all"]["value"] and row["R@5"]["value"] == 100, "two photos a category"


def test_what_cannot_run_is_refused(tree: Path, tmp_path: Path) -> None:
    def said(*words: object) -> str:
        return refused("experiments", "reproduce", *words, "--output", tmp_path)

    assert "ma_sbir:table1, table3 and table7 folders" in said("ma_sbir:table4", "--data", f"folders:{tree}")
    three = sketchy_ext(tmp_path / "three")
    picture(three / "clipart" / "bat" / "1.png", seed=1)
    assert "data must have one style of queries, got clipart, sketch" in said(
        "ma_sbir:table1", "--data", f"folders:{three}", "--set", "run.device=cpu"
    )
