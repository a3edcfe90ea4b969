"""Captioned pictures: every picture once an epoch, captions, classes that lack a side, and what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hystar_fast.data.folders import load_folders
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.images import ResizeTo
from hystar_fast.data.open import open_images
from hystar_fast.methods.step_trained import Batching
from hystar_fast.train.captioned import CaptionedPictures
from hystar_fast.train.category_data import open_categories
from hystar_fast.train.settings import DataSettings
from tests.support.picture_trees import damaged, picture

RESIZE = ResizeTo((8, 8))
BATCHING = Batching(of="captioned", names="categories", template="a photo of a {}.")


def tree(root: Path, classes: int = 6, pictures: int = 2) -> ImageSet:
    for style in ("photo", "sketch"):
        for number in range(classes):
            for i in range(pictures):
                picture(root / style / f"class_{number}" / f"{i}.png", seed=9 * number + i)
    return load_folders(root)


def captioned(images: ImageSet, batch_size: int = 5, seed: int = 0, **batching: str) -> CaptionedPictures:
    how = replace(BATCHING, **batching)
    return CaptionedPictures(images, (), RESIZE, how, batch_size=batch_size, seed=seed)


def test_every_picture_comes_once_an_epoch_in_an_order_of_the_seed(tmp_path: Path) -> None:
    images = tree(tmp_path)
    found = captioned(images)
    assert (len(found.items), found.batches_per_epoch) == (24, 5)
    epochs = [[row for step in range(5) for row in found.draw(5 * epoch + step)] for epoch in range(2)]
    assert all(sorted(rows) == [*range(24)] for rows in epochs) and epochs[0] != epochs[1]
    again, other = captioned(images), captioned(images, seed=1)
    assert again.draw(7) == found.draw(7) != other.draw(7) and again.identity() == found.identity()
    listed = captioned(images, order="listed")
    assert [row for step in range(5, 10) for row in listed.draw(step)] == [*range(24)]


def test_a_batch_has_pictures_captions_and_kinds(tmp_path: Path) -> None:
    found = captioned(tree(tmp_path))
    batch, rows = found.load(0), found.draw(0)
    assert found.styles == ("photo", "sketch") and found.categories[1] == "a photo of a class 1."
    assert [found.categories[label][-2] for label in batch.labels] == [found.items[r].category[-1] for r in rows]
    assert [found.styles[kind] for kind in batch.kinds] == [found.items[row].style for row in rows]
    assert batch.pictures.shape == (5, 3, 8, 8) and batch.usable.all()
    parts = [found.load(3, (rank, 5)) for rank in range(5)]
    assert torch.equal(torch.cat([part.pictures for part in parts]), found.load(3).pictures)
    assert torch.equal(parts[4].labels, found.load(3).labels), "labels and kinds are those of the whole batch"


def test_disjoint_classes_have_one_modality_in_every_batch(tmp_path: Path) -> None:
    found = captioned(tree(tmp_path, classes=12), batch_size=4, unpaired="disjoint")
    sides: dict[int, set[int]] = {}
    for step in range(found.batches_per_epoch):
        batch = found.load(step)
        for label, kind in zip(batch.labels.tolist(), batch.kinds.tolist(), strict=True):
            sides.setdefault(label, set()).add(kind)
    assert all(len(kinds) == 1 for kinds in sides.values()) and {k for s in sides.values() for k in s} == {0, 1}
    assert {r.path for r in found.training.records} == {r.path for r in found.items}


@pytest.mark.parametrize(("unpaired", "kept"), [("gallery", "photo"), ("queries", "sketch")])
def test_a_fifth_of_the_classes_may_have_one_side_alone(tmp_path: Path, unpaired: str, kept: str) -> None:
    found = captioned(tree(tmp_path, classes=60, pictures=1), unpaired=unpaired)
    styles: dict[str, set[str]] = {}
    for record in found.items:
        styles.setdefault(str(record.category), set()).add(record.style)
    alone = [sides for sides in styles.values() if len(sides) == 1]
    assert len(styles) == 60 and 6 <= len(alone) <= 18 and all(sides == {kept} for sides in alone)


def test_pictures_that_cannot_be_read_are_listed_and_not_usable(tmp_path: Path) -> None:
    images = tree(tmp_path)
    damaged(tmp_path / "sketch/class_2/1.png")
    found = captioned(images, batch_size=24)
    batch = found.load(0)
    assert [*found.skipped] == ["sketch/class_2/1.png"] and int((~batch.usable).sum()) == 1
    (row,) = (~batch.usable).nonzero().flatten().tolist()
    assert found.items[found.draw(0)[row]].path == "sketch/class_2/1.png" and not batch.pictures[row].any()


def test_whole_classes_are_held_out_for_validation(tmp_path: Path) -> None:
    tree(tmp_path, classes=10)
    found = open_categories(DataSettings(source=str(tmp_path), validation=0.3), BATCHING)
    trained = {record.category for record in found.training.records}
    assert len(trained) == 7
    listed = len(open_images(str(tmp_path)).records)
    assert found.notes == (
        f"read {listed} pictures of 10 categories: photo, sketch; 3 categories are held out for validation",
    )
    batches = found.batches(RESIZE, 4, 0)
    assert isinstance(batches, CaptionedPictures) and len(batches.categories) == 7


def test_what_cannot_be_divided_or_told_apart_is_refused(tmp_path: Path) -> None:
    images = tree(tmp_path)
    captioned(images, 8).check_share(2)
    with pytest.raises(ValueError, match=r"divide evenly over 4 processes, got 10 for 24 pictures, with a batch of 10"):
        captioned(images, 10).check_share(4)
    with pytest.raises(ValueError, match="must have at least 2 captions with a picture to train on, got 0 with 0"):
        captioned(images, names="captions")
    with pytest.raises(ValueError, match="styles must be query styles, but 'photo' is the gallery style"):
        CaptionedPictures(images, ("photo",), RESIZE, BATCHING, batch_size=4)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        captioned(images, 1)


def test_one_category_is_never_the_whole_validation(tmp_path: Path) -> None:
    """Where every picture is relevant every model has mAP 100, and the first step would be kept."""
    tree(tmp_path / "eight", classes=8)
    found = open_categories(DataSettings(source=str(tmp_path / "eight")), BATCHING)  # a tenth of 8 is one
    assert "2 categories are held out for validation" in found.notes[0]
    tree(tmp_path / "two", classes=2)
    with pytest.raises(ValueError, match=r"data\.validation must be 'none' for data of 2 categories, got 'val'"):
        open_categories(DataSettings(source=str(tmp_path / "two")), BATCHING)
