"""PACS, Office-Home and DomainNet: layouts, spellings of folders, and the counts of the public copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hystar_fast.data.domain_sets import DOMAIN_SETS, DOMAINNET_COUNTS, count_differences, load_domain_set
from hystar_fast.data.image_set import FolderReader, ImageSet, Record
from hystar_fast.data.open import open_images
from tests.support import picture_trees as trees

PACS = ("art_painting", "cartoon", "photo", "sketch")


def tree(root: Path, domains: tuple[str, ...], classes: tuple[str, ...] = ("dog", "house")) -> Path:
    for domain in domains:
        for name in classes:
            (root / domain / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / domain / name / "pic_1.png")
    return root


def test_the_counts_are_those_of_the_papers() -> None:
    totals = {kind: sum(known.counts.values()) for kind, known in DOMAIN_SETS.items()}
    assert totals == {"pacs": 9_991, "office-home": 15_588}
    assert sum(sum(part.values()) for part in DOMAINNET_COUNTS.values()) == 586_575
    assert {kind: known.classes for kind, known in DOMAIN_SETS.items()} == {"pacs": 7, "office-home": 65}


@pytest.mark.parametrize("inside", ["", "PACS", "kfold"])
def test_pacs_is_found_in_the_folders_of_its_archives(tmp_path: Path, inside: str) -> None:
    tree(tmp_path / inside, PACS)
    found = open_images(f"pacs:{tmp_path}")
    assert found.gallery_style == "photo" and found.styles == ("photo", "art_painting", "cartoon", "sketch")
    assert found.of_style("sketch")[1].path == f"{inside}/sketch/house/pic_1.png".lstrip("/")
    assert found.of_style("sketch")[1].category == "house" and found.read(found.records[0]).size == (8, 8)
    assert "photo 2 of 1,670 pictures" in found.name and "2 of 7 classes" in found.name
    other = open_images(f"pacs:{tmp_path}", gallery_style="cartoon")
    assert other.gallery_style == "cartoon" and {*other.records} == {*found.records}


@pytest.mark.parametrize("spelling", ["Real World", "RealWorld", "Real_World"])
def test_office_home_is_read_in_every_spelling(tmp_path: Path, spelling: str) -> None:
    tree(tmp_path, ("Art", "Clipart", "Product", spelling), ("Alarm_Clock",))
    found = open_images(f"office-home:{tmp_path}")
    assert found.gallery_style == "Real World" and len(found.of_style("Real World")) == 1
    assert found.of_style("Real World")[0].path == f"{spelling}/Alarm_Clock/pic_1.png"


def test_a_whole_copy_has_its_plain_name_and_another_one_says_what_it_has(monkeypatch, tmp_path: Path) -> None:
    tree(tmp_path, PACS)
    small = replace(DOMAIN_SETS["pacs"], counts=dict.fromkeys(PACS, 2), classes=2)
    monkeypatch.setitem(DOMAIN_SETS, "pacs", small)
    assert load_domain_set("pacs", tmp_path).name == "PACS"
    (tmp_path / "sketch/dog/pic_1.png").rename(tmp_path / "sketch/dog/pic_1.svg")
    found = load_domain_set("pacs", tmp_path)
    assert found.name == "PACS (sketch 1 of 2 pictures)"
    assert [entry.path for entry in found.skipped] == ["sketch/dog/pic_1.svg"]


def test_differences_name_each_domain(tmp_path: Path) -> None:
    records = tuple(Record(f"{style}/a/{n}", style, "a") for style in ("photo", "sketch") for n in range(3))
    images = ImageSet("x", "photo", records, FolderReader(tmp_path))
    assert count_differences(images, {"photo": 3, "sketch": 3}, 1) == []
    assert count_differences(images, {"photo": 4, "sketch": 3, "art": 9}, 2) == [
        "photo 3 of 4 pictures",
        "1 of 2 classes",
    ]


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, PACS[:3])
    with pytest.raises(ValueError, match="<class>/<picture> for art_painting, cartoon, photo, sketch"):
        open_images(f"pacs:{tmp_path}")
    (tmp_path / "sketch").mkdir()
    with pytest.raises(ValueError, match="no <class>/<picture> below sketch/"):
        open_images(f"pacs:{tmp_path}")
    tree(tmp_path / "whole", PACS)
    with pytest.raises(ValueError, match="must be one of art_painting, cartoon, photo, sketch, got 'art'"):
        open_images(f"pacs:{tmp_path / 'whole'}", gallery_style="art")


def test_both_parts_of_domainnet_are_one(tmp_path: Path) -> None:
    trees.domainnet(tmp_path)
    for style in ("real", "clipart", "sketch"):
        lines = (tmp_path / f"{style}_test.txt").read_text().splitlines()
        (tmp_path / f"{style}_train.txt").write_text("\n".join(lines[:1]) + "\n")
        (tmp_path / f"{style}_test.txt").write_text("\n".join(lines[1:]) + "\n")
    whole, train, test = (open_images(f"domainnet:{tmp_path}", split) for split in ("all", "train", "test"))
    assert {*whole.records} == {*train.records, *test.records} and len(whole.records) == len({*whole.records})
    assert len(train.records) == 3 and whole.styles == test.styles
