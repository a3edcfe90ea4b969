"""The three parts of an experiment's data."""

from __future__ import annotations

from typing import Any

import pytest

from hystar_fast.data.image_set import ImageSet
from hystar_fast.experiments.experiment_settings import Data, ExperimentSettings, read_experiment
from hystar_fast.experiments.splits import Splits, open_splits
from tests.support import picture_trees as trees
from tests.support.experiments import done, refused_experiment


def splits_of(source: str, **data: Any) -> Splits:
    return open_splits(ExperimentSettings(data=Data(source, **data)))


def parts(splits: Splits) -> tuple[ImageSet, ImageSet, ImageSet]:
    return splits.training, splits.validation, splits.test


def are_disjoint(groups: list[set[Any]]) -> bool:
    return all(groups) and len(set.union(*groups)) == sum(map(len, groups))


def test_the_parts_of_a_data_set_with_splits_share_no_picture(tmp_path):
    splits = splits_of(f"dsr:{trees.split_dsr(tmp_path / 'DSR')}")
    names = [{record.instance for record in part.records} for part in parts(splits)]
    assert are_disjoint(names) and sum(map(len, names)) == 56 and len(names[2]) == 26
    assert splits.styles == splits.headline == ("art", "sketch")
    assert splits.items == len(names[0])


def test_folders_are_divided_into_disjoint_parts(tmp_path):
    for category in ("ant", "bee"):
        for i in range(40):
            for style in ("photo", "sketch"):
                trees.picture(tmp_path / style / category / f"{i}.png", seed=i)
    found = [{record.path for record in part.records} for part in parts(splits_of(f"folders:{tmp_path}"))]
    assert are_disjoint(found) and sum(map(len, found)) == 160


def test_a_picture_of_two_pairs_is_in_one_part(tmp_path):
    chain = trees.pairs(tmp_path / "chain", [(f"p{i}.png", f"p{i + 1}.png") for i in range(120)])
    assert are_disjoint([{record.path for record in part.records} for part in parts(splits_of(f"pairs:{chain}"))])
    few = trees.pairs(tmp_path / "few", [("a.png", "b.png")])
    with pytest.raises(ValueError, match="must have enough pictures for training, validation and test"):
        splits_of(f"pairs:{few}")


def test_the_embedded_drawings_have_their_own_validation_split_and_unseen_subgroups():
    splits = splits_of("emoji")
    assert are_disjoint([{record.instance for record in part.records} for part in parts(splits)])
    assert splits.headline == ("outline", "sketch", "lowres") and splits.test.unseen_categories


def test_only_queries_that_are_drawn_in_the_gallerys_frame_are_displaced(tmp_path):
    plain, moved = splits_of("emoji", limit=4), splits_of("emoji", limit=4, displaced=True)
    assert plain.registered is None and moved.registered is not None
    assert moved.registered.read(moved.test.records[-1]) == plain.test.read(plain.test.records[-1])
    for part, other in ((moved.validation, plain.validation), (moved.test, plain.test)):
        assert part.records == other.records
        for record in part.records:
            same = part.read(record).tobytes() == other.read(record).tobytes()
            assert same == (record.style == part.gallery_style), record
    assert moved.training.read(moved.training.records[-1]) == plain.training.read(plain.training.records[-1])
    assert "displaced: shifted and scaled by up to 15%, turned by up to 10 degrees" in moved.info()["protocol"]
    photos = splits_of(f"dsr:{trees.split_dsr(tmp_path / 'DSR')}", displaced=True)
    assert photos.registered is None and "displaced" not in photos.info()["protocol"]


def test_the_shipped_comparison_displaces_queries_and_the_papers_does_not():
    assert read_experiment("emoji").data.displaced
    assert not read_experiment("paper").data.displaced


def test_bad_data_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"data\.protocol must be one of .*, got 'batch48'"):
        splits_of("emoji", protocol="batch48")
    assert "nowhere" in refused_experiment("compare", tmp_path, data={"source": "dsr:/nowhere"})
    assert "gallery_style must be" in refused_experiment("compare", tmp_path, data={"gallery_style": "flat"})


def test_another_style_can_be_the_gallery(tmp_path):
    for i in range(30):
        for style in ("drawing", "thing"):
            trees.picture(tmp_path / "in" / style / "ant" / f"{i}.png", seed=i)
    sections: dict[str, Any] = {"data": {"source": f"folders:{tmp_path / 'in'}"}, "training": {"methods": ["pixels"]}}
    assert "one of them the gallery (photo, or as named)" in refused_experiment("compare", tmp_path, **sections)
    sections["data"]["gallery_style"] = "thing"
    assert "mean of drawing" in done("compare", tmp_path, **sections)
