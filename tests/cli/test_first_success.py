"""A folder with sketches/ and photos/: every command works on it, finds what the last one made, and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from hystar_fast.data.hold_out import Shares
from hystar_fast.data.open import open_images
from hystar_fast.index.engine import key_of
from hystar_fast.index.open_index import open_engine
from hystar_fast.methods import suite
from hystar_fast.train.data_record import DATA_FILE, DataRecord
from tests.support import picture_trees as trees
from tests.support.cli import refused, run

SHORT = ("--set", "optim.steps=2", "--set", "optim.batch_size=4", "--set", "data.jitter=0")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder with data in DIR, and work in it."""
    monkeypatch.chdir(tmp_path)
    trees.matching(tmp_path / "DIR", n=12)
    return tmp_path


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def evaluated(*arguments: object) -> tuple[str, int]:
    """Return the lines of an evaluation and the size of its gallery."""
    shown = output("eval", *arguments)
    return shown, json.loads(Path("runs/eval/results.json").read_text())["gallery"]["n"]


def test_train_eval_embed_and_search_work_in_turn(here):
    shown = output("train", "--data", "DIR", *SHORT)
    assert "read 12 pairs: sketches -> photos\n" in shown
    assert "no splits: of 12 gallery pictures 2 for validation and 2 for eval are held out, 8 train\n" in shown
    assert "hystar on tiny: 2 steps" in shown and "best on validation: R@1" in shown

    shown, size = evaluated("--data", "DIR")
    assert "using the adapter in runs/train/adapter" in shown and "read 12 pairs: sketches -> photos\n" in shown
    assert "2 of 12 gallery pictures of DIR: held out from training\n" in shown and size == 2
    assert "R@k: queries with a right picture among the first k" in shown

    assert "using the adapter in runs/train/adapter" in output("embed", "DIR/photos")
    shown = output("search", "--query", "DIR/photos/03.jpg")
    assert "searching runs/index" in shown and "DIR/photos/03.jpg: first 5 of 12\n" in shown
    hits = json.loads(run("search", "--query", "DIR/photos/03.jpg", "--json").stdout)
    expected = {"rank": 1, "id": "03.jpg", "caption": "03.jpg", "score": pytest.approx(1, abs=1e-4), "by": "image"}
    assert hits[0] == {**expected, "key": key_of("03.jpg")}
    assert (here / "runs/train/log.txt").is_file() and (here / "runs/eval/log.txt").is_file()


def test_without_an_adapter_the_frozen_backbone_is_used_and_named(here, monkeypatch):
    real = suite.backbone_fingerprints
    for arguments in (("embed", "DIR/photos"), ("eval", "--data", "DIR")):
        assert "using the frozen tiny backbone: neither runs/train/adapter nor runs/demo/adapter" in output(*arguments)
    assert not (here / "runs/index/adapter").exists()
    hits = json.loads(run("search", "--query", "DIR/photos/05.jpg", "--top", 1, "--json").stdout)
    assert hits[0]["id"] == "05.jpg"
    monkeypatch.setattr(suite, "backbone_fingerprints", lambda *args: {**real(*args), "backbone": "0" * 64})
    message = refused("search", "--query", "DIR/photos/05.jpg")
    assert "runs/index must have vectors of one model, got fingerprints.backbone" in message


def test_the_defaults_fall_back_to_the_demo_and_prefer_what_was_made_last(here):
    output("train", "--data", "DIR", "--output", "runs/demo", *SHORT)
    assert "using the adapter in runs/demo/adapter" in output("embed", "DIR/photos", "--output", "runs/demo")
    assert "searching runs/demo (" in output("search", "--query", "DIR/photos/05.jpg")
    output("embed", "DIR/photos")
    assert "searching runs/index (" in output("search", "--query", "DIR/photos/05.jpg")


@pytest.mark.parametrize(
    ("validation", "size", "line"),
    [
        ("0.3", None, "held out from training, but they selected the adapter"),
        ("none", 12, "all 12 gallery pictures of DIR: the adapter was trained on all of them"),
    ],
)
def test_eval_leaves_out_what_the_adapter_was_trained_on(here, validation, size, line):
    output("train", "--data", "DIR", *SHORT, "--set", f"data.validation={validation}")
    shown, found = evaluated("--data", "DIR")
    assert line in shown
    record = DataRecord.read(Path("runs/train/adapter"))
    assert record is not None
    held = record.shares.part(open_images("DIR"), "val")
    assert found == (size or len(held.gallery)) and (size or 0 < found < 12)
    refusal = "--split must be" if size is None else "'all' for this adapter"
    assert refusal in refused("eval", "--data", "DIR", "--split", "test")


def test_the_training_data_are_known_under_another_name_and_with_more_pictures(here):
    output("train", "--data", "DIR", *SHORT)
    whole = open_images("DIR")
    trained = {r.path for r in Shares.of(whole).part(whole, "train").records}
    shutil.copytree("DIR", "COPY")
    for data in ("folders:DIR", f"{here}/DIR/../DIR", "COPY"):
        assert evaluated("--data", data)[1] == 2
    trees.matching(here / "DIR", n=30)
    shown, size = evaluated("--data", "DIR")
    assert "held out from training" in shown and 2 <= size <= 20
    record = DataRecord.read(Path("runs/train/adapter"))
    assert record is not None
    assert not trained & {r.path for r in record.shares.part(open_images("DIR"), "test").records}


def test_other_data_are_used_whole_and_parts_of_them_on_request(here):
    output("train", "--data", "DIR", *SHORT)
    trees.matching(here / "OTHER", n=15)
    shown, size = evaluated("--data", "OTHER")
    assert f"all 15 gallery pictures of OTHER; the adapter was trained on other data, {here}/DIR\n" in shown
    assert size == 15
    shown, size = evaluated("--method", "pixels", "--data", "DIR")
    assert "all 12 gallery pictures of DIR; --split test for the part that train holds out" in shown and size == 12
    shown, size = evaluated("--method", "pixels", "--data", "DIR", "--split", "test")
    assert "2 of 12 gallery pictures of DIR: the test part by hash" in shown and size == 2
    Path("runs/train/adapter", DATA_FILE).unlink()
    shown, size = evaluated("--data", "DIR")
    assert "it is not known whether the adapter was trained on some of them" in shown and size == 12
    Path("runs/train/adapter", DATA_FILE).write_text("[" * 100_000)
    assert "data.json is damaged" in refused("eval", "--data", "DIR")


def test_earlier_results_are_kept_and_an_index_of_other_pictures_is_not_replaced(here):
    results = here / "runs/eval/results.json"
    output("eval", "--method", "pixels", "--data", "DIR")
    first = json.loads(results.read_text())
    assert "kept" not in output("eval", "--method", "pixels", "--data", "DIR"), "the same command replaces its results"
    shown = output("eval", "--method", "pixels", "--data", "DIR", "--metrics", "R@3")
    assert "kept the results of an earlier evaluation: runs/eval/results-1.json\n" in shown
    assert json.loads((here / "runs/eval/results-1.json").read_text())["queries"] == first["queries"]

    output("embed", "DIR/photos")
    message = refused("embed", "DIR/sketches")
    assert f"with the index of {here}/DIR/photos; --overwrite replaces it" in message
    output("embed", "DIR/photos")
    output("embed", "DIR/sketches", "--overwrite")
    with open_engine(here / "runs/index") as engine:
        assert sorted(engine.known())[0] == "00.png" and engine.count() == 12
    message = refused("demo", "--output", "runs/eval", "--weights", "random")
    assert "--output must be another folder" in message and "holds results of another command" in message


def test_embed_indexes_the_photos_alone_where_the_other_folders_are_their_sketches(here):
    shown = output("embed", "DIR")
    assert "indexing DIR/photos: the other pictures in DIR are sketches of these\n" in shown and "indexed 12" in shown
    assert "indexed 12" in output("embed", "DIR/photos"), "the same index"
    trees.matching(here / "TRIPS", n=3, styles=("photos", "backup"))
    assert "indexed 6 pictures" in output("embed", "TRIPS", "--output", "trips")
    trees.picture(here / "DIR/more.png")
    assert "indexed 25 pictures" in output("embed", "DIR", "--output", "all")


def test_a_picture_that_cannot_be_written_leaves_the_old_one(here, monkeypatch):
    output("embed", "DIR/photos")
    output("search", "--query", "DIR/photos/03.jpg", "--picture", "answers.jpg")
    before = Path("answers.jpg").read_bytes()
    assert Image.open("answers.jpg").format == "JPEG"

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "the disk is full" in refused("search", "--query", "DIR/photos/04.jpg", "--picture", "answers.jpg")
    assert Path("answers.jpg").read_bytes() == before


def test_the_option_that_decides_is_named_where_the_gallery_is_unclear(here):
    trees.matching(here / "AB", n=12, styles=("a", "b"))
    for command in (("train", "--data", "AB"), ("eval", "--method", "pixels", "--data", "AB")):
        assert "error: --gallery-style must say which of a, b in AB holds" in refused(*command)
    assert "data.gallery_style must say" in refused("experiments", "tune", "--set", "data.source=AB")
    assert "read 12 pairs: a -> b\n" in output("train", "--data", "AB", "--gallery-style", "b", *SHORT)
