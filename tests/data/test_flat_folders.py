"""Folders of equal file names: which is the gallery, which pictures are pairs, and what is said about it."""

from __future__ import annotations

import re

import pytest

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.open import open_images
from tests.support import picture_trees as trees


@pytest.mark.parametrize("kind", ["", "folders:"])
def test_equal_names_are_pairs_whatever_the_suffixes(tmp_path, kind):
    root = trees.matching(tmp_path / "DIR", n=3)
    trees.picture(root / "sketches/01-2.png")
    trees.picture(root / "sketches/other.png")
    found = open_images(f"{kind}{root}")
    assert (found.name, found.styles, found.has_splits) == ("DIR", ("photos", "sketches"), False)
    assert found.gallery[1] == Record("photos/01.jpg", "photos", None, "01")
    assert [(r.path, r.instance) for r in found.of_style("sketches")] == [
        ("sketches/00.png", "00"),
        ("sketches/01-2.png", "01"),
        ("sketches/01.png", "01"),
        ("sketches/02.png", "02"),
        ("sketches/other.png", None),
    ]
    assert found.read(found.gallery[0]).size == (20, 16)
    assert found.summary == "4 pairs: sketches -> photos; 1 queries belong to no gallery picture"


@pytest.mark.parametrize(
    ("styles", "gallery"),
    [
        (("Photos", "sketches"), "Photos"),
        (("IMAGE", "a", "b"), "IMAGE"),
        (("gallery", "queries"), "gallery"),
        (("drawings", "renders"), "renders"),
        (("renders", "my_sketches"), "renders"),
    ],
)
def test_the_gallery_is_known_by_its_name_or_by_the_sketches(tmp_path, styles, gallery):
    found = open_images(str(trees.matching(tmp_path, n=2, styles=styles)))
    assert found.gallery_style == gallery and set(found.query_styles) == {*styles} - {gallery}


@pytest.mark.parametrize(
    ("styles", "of"),
    [
        (("a", "b"), "a, b"),
        (("images", "photos", "sketches"), "images, photos"),
        (("sketches", "drawings"), "drawings"),
    ],
)
def test_an_unclear_gallery_is_asked_for(tmp_path, styles, of):
    root = trees.matching(tmp_path, n=2, styles=styles)
    with pytest.raises(ValueError, match=f"gallery_style must say which of {of}"):
        open_images(str(root))
    assert open_images(str(root), gallery_style=styles[1]).gallery_style == styles[1]
    with pytest.raises(ValueError, match=r"must name the folder of .* got 'c'"):
        open_images(str(root), gallery_style="c")


def test_folders_without_equal_names_and_names_used_twice_are_refused(tmp_path):
    trees.picture(tmp_path / "photos/a.png")
    trees.picture(tmp_path / "sketches/b.png")
    fix = "give both the same name, or list the pairs in a CSV with the columns query,target"
    with pytest.raises(ValueError, match=rf"sketches/b.png and photos/a.png, .*{re.escape(fix)}"):
        open_images(str(tmp_path))
    trees.picture(tmp_path / "photos/b.jpg")
    assert open_images(str(tmp_path)).summary.startswith("1 pairs")
    trees.picture(tmp_path / "photos/b.png")
    with pytest.raises(ValueError, match=r"b.jpg and b.png in photos/, one name for two pictures: rename one"):
        open_images(str(tmp_path))


def test_folders_with_categories_are_read_as_before(tmp_path):
    found = open_images(str(trees.sketchy(tmp_path)))
    assert found.has_categories and found.gallery_style == "photo"


def test_unsupported_pictures_are_counted(tmp_path):
    root = trees.matching(tmp_path, n=2)
    (root / "sketches/00.svg").touch()
    assert [entry.path for entry in open_images(str(root)).skipped] == ["sketches/00.svg"]


@pytest.mark.parametrize("styles", [("Sketch", "sketch"), ("photo", "Photo")])
def test_styles_that_differ_in_case_only_are_refused(styles):
    records = tuple(Record(f"{style}.png", style) for style in ("photo", *styles))
    with pytest.raises(ValueError, match="styles must differ in more than upper and lower case"):
        ImageSet("mine", "photo", records, lambda record: None)  # type: ignore[arg-type, return-value]


def test_a_reserved_name_is_refused_in_any_case():
    records = (Record("a.png", "photo"), Record("b.png", "Text"))
    with pytest.raises(ValueError, match="got 'Text' in mine; rename it"):
        ImageSet("mine", "photo", records, lambda record: None)  # type: ignore[arg-type, return-value]
