"""Photographs of an unpacked Debian package as the gallery for the embedded drawings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from hystar_fast.data.open import open_images
from hystar_fast.data.stamps import PLACE
from tests.support import picture_trees as trees
from tests.support.cli import refused, run

STAMPS = {
    "animals/mammals/cats/lion.png": "A lion.",
    "animals/mammals/cats/lion-2.png": "A lion.",
    "animals/mammals/cats/cartoon/lion-3.png": "A lion.",
    "animals/mammals/dog.png": "A dog.",  # an engraving
    "animals/mammals/bears/bear.png": "A bear.",
    "animals/birds/heron.png": "A great blue heron.",
    "household/teapot.png": "The “teapot”!",
    "medical/syringe.png": "A syringe.",  # a validation concept
    "symbols/a.png": "A",
    "food/orphan.png": "",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for place, name in STAMPS.items():
        path = trees.picture(tmp_path / PLACE / place)
        if name:
            path.with_suffix(".txt").write_text(f"{name}\nde.utf8=Ein Ding.\n", encoding="utf-8")
    return tmp_path


def test_photographs_are_the_gallery_of_drawings_with_their_name(package):
    images = open_images(f"stamps:{package}")
    assert sorted(record.path.rpartition("/")[2] for record in images.gallery) == [
        "bear.png", "heron.png", "lion-2.png", "lion.png", "syringe.png", "teapot.png"
    ]  # fmt: skip
    assert {record.category for record in images.gallery} == {"bear", "great blue heron", "lion", "syringe", "teapot"}
    for style in ("outline", "sketch", "lowres", "twemoji"):
        assert sorted(str(record.category) for record in images.of_style(style)) == ["bear", "lion", "teapot"]
    assert images.read(images.gallery[0]).size == images.read(images.gallery[1]).size
    assert images.read(images.of_style("sketch")[0]).size == (64, 64)
    assert {record.category for record in open_images(str(package), "val").of_style("sketch")} == {"syringe"}


def test_transparent_parts_of_a_photograph_are_white(package):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(package / PLACE / "animals/mammals/bears/bear.png")
    images = open_images(str(package))
    bear = next(record for record in images.gallery if record.category == "bear")
    assert images.read(bear).getextrema() == ((255, 255),) * 3


def test_eval_ranks_categories_over_all_photographs(package, tmp_path):
    result = run("eval", "--method", "pixels", "--data", f"stamps:{package}", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["task"], found["gallery"], found["data"]["split"]) == ("category", {"what": "photo", "n": 6}, "test")
    assert {kind: row["n"] for kind, row in found["queries"].items()} == dict.fromkeys(
        ("outline", "sketch", "lowres", "twemoji"), 3
    )


def test_other_folders_and_training_are_refused(package, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused("eval", "--method", "pixels", "--data", f"stamps:{tmp_path / 'empty'}")
    assert (
        "does not have the layout of stamps. Expected: the unpacked Debian package tuxpaint-stamps-default" in message
    )
    assert "--gallery-style must be left out for stamps" in refused(
        "eval", "--method", "pixels", "--data", f"stamps:{package}", "--gallery-style", "photo"
    )
    with pytest.raises(ValueError, match="split must be val or test for stamps, which are for evaluation alone"):
        open_images(f"stamps:{package}", "train")
