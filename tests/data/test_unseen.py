"""Zero-shot splits by category: the lists, how their names match, the parts and their sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import FolderReader, ImageSet, Record
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import LISTS, PUBLISHED, CategorySplit, _listed, hold_out_categories
from tests.support import picture_trees as trees

PASCAL = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SEEN = ("axe", "dog", "saxophone", "computer-mouse", "car (sedan)")


def made(**sizes: tuple[int, int]) -> ImageSet:
    """Return a data set with so many queries and gallery pictures of each category."""
    records = [
        Record(f"{style}/{name}/{i}", style, name)
        for name, counts in sizes.items()
        for style, count in zip(("sketch", "photo"), counts, strict=True)
        for i in range(count)
    ]
    return ImageSet("made", "photo", tuple(records), FolderReader(Path(".")))


def counted(images: ImageSet) -> tuple[int, int]:
    return len(images.records) - len(images.gallery), len(images.gallery)


@pytest.mark.parametrize(("name", "count"), [*zip(LISTS, (21, 25, 30, 30, 30), strict=True)])
def test_a_list_has_its_names_and_divides_data_with_them(tmp_path, name, count):
    names = _listed(name)
    assert len(names) == len({*names}) == count
    images = open_images(str(trees.of_categories(tmp_path, (*names, *SEEN))))
    split = CategorySplit.of(name, images)
    assert split.unseen == {*names}
    seen, unseen = split.training(images), split.unseen_part(images)
    assert {record.category for record in seen.records} == {*SEEN}
    assert {record.category for record in unseen.records} == {*names}
    assert not {record.path for record in seen.records} & {record.path for record in unseen.records}
    assert seen.unseen_categories == unseen.unseen_categories == {*names}


def test_four_categories_are_unseen_in_both_lists_of_sketchy():
    assert {*_listed("sketchy21")} & {*_listed("sketchy25")} == {"scissors", "tree", "wheelchair", "windmill"}


def test_names_match_without_case_and_with_any_separator(tmp_path):
    names = {name.replace(" ", "_").title() for name in _listed("tuberlin30")}
    images = open_images(str(trees.of_categories(tmp_path, (*sorted(names), *SEEN))))
    assert CategorySplit.of("tuberlin30", images).unseen == names
    assert {"Hot_Air_Balloon", "Frying-Pan", "T-Shirt"} <= names


def test_a_name_that_no_folder_has_is_refused_with_the_nearest(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("# two of ours\nwindmil\n\ncow # an animal\n")
    with pytest.raises(ValueError, match=r"categories of made, got 'windmil', which it has not; the nearest is 'windm"):
        CategorySplit.of(str(file), made(windmill=(1, 1), cow=(1, 1), axe=(1, 1)))
    file.write_text("# two of ours\nwindmill\n\ncow # an animal\n")
    assert CategorySplit.of(str(file), made(windmill=(1, 1), cow=(1, 1), axe=(1, 1))).unseen == {"windmill", "cow"}


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("sketchy22", made(cow=(1, 1)), "unseen must be one of sketchy21, .*, got 'sketchy22'; did you mean sketchy2"),
        ("half:x", made(cow=(1, 1)), "unseen must be half:<seed> with a whole number, got 'half:x'"),
        ("subgroup", made(cow=(1, 1)), "unseen must be a list or a file for made, which marks none, got 'subgroup'"),
        ("sketchy21", made(), "images must have categories to be divided by them, got made, which has none"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(name, images, message):
    with pytest.raises(ValueError, match=message):
        CategorySplit.of(name, images)


def test_two_folders_of_one_name_and_an_empty_file_are_refused(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("Hot Dog")
    with pytest.raises(ValueError, match="must name one category of made each, got 'Hot Dog' for hot-dog and hot_dog"):
        CategorySplit.of(str(file), made(**{"hot_dog": (1, 1), "hot-dog": (1, 1)}))
    file.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"one category a line, got .*names\.txt without any"):
        CategorySplit.of(str(file), made(cow=(1, 1)))


@pytest.mark.parametrize(
    ("seed", "seen"),
    [
        (42, "bottle bus car cow horse motorbike person pottedplant train tvmonitor"),
        (5, "bicycle bird bottle bus car cow person pottedplant sofa train"),
        (0, "aeroplane bird boat cow diningtable dog person sheep sofa train"),
    ],
)
def test_halves_are_those_of_the_shuffled_names(seed, seen):
    images = made(**dict.fromkeys(reversed(PASCAL), (1, 1)))
    split = CategorySplit.of(f"half:{seed}", images)
    assert {record.category for record in split.training(images).records} == {*seen.split()}
    assert split.unseen == {*PASCAL} - {*seen.split()}


def test_the_embedded_drawings_are_divided_by_their_unseen_subgroups():
    for part, (seen, unseen) in {"test": (245, 65), "all": (1237, 324), "train": (866, 0)}.items():
        images = load_emoji(part, ("sketch",))
        split = CategorySplit.of("subgroup", images)
        assert len(split.unseen) == 20
        assert (counted(split.training(images))[1], counted(split.unseen_part(images))[1]) == (seen, unseen)


def test_a_generalised_gallery_holds_seen_pictures_too_and_training_can_leave_the_sample_out():
    images = made(cow=(6, 11), bat=(4, 9), axe=(20, 30), dog=(20, 30))
    split = CategorySplit("two", frozenset({"cow", "bat"}))
    assert counted(split.unseen_part(images)) == (10, 20)
    assert counted(split.generalised(images, "sample")) == (10, 24)
    assert counted(split.generalised(images, "sample+queries")) == (12, 24)
    assert counted(split.generalised(images, "all")) == (10, 80)
    assert split.generalised(images, "sample") == split.generalised(images, "sample")
    drawn = {r.path for r in split.generalised(images, "sample").gallery} - {
        r.path for r in split.unseen_part(images).records
    }
    left = {record.path for record in split.training(images, without_sample=True).records}
    assert len(drawn) == 4 and left == {record.path for record in split.training(images).records} - drawn
    with pytest.raises(ValueError, match=r"generalised must be one of \('sample', 'sample\+queries', 'all'\), got 'x'"):
        split.generalised(images, "x")
    with pytest.raises(ValueError, match="gallery pictures of seen categories, got none in made"):
        split.generalised(split.unseen_part(images), "all")


def test_sizes_are_printed_beside_the_published_ones():
    images = made(cow=(12, 7), bat=(1, 3), axe=(2, 5))
    assert CategorySplit("two", frozenset({"cow", "bat"})).sizes(images) == (
        "two: 2 unseen categories, 13 queries, 10 gallery pictures",
        "1 seen categories, 2 queries, 5 gallery pictures",
    )
    gallery = tuple(replace(record, captions=("a text",)) for record in images.gallery)
    drawn = tuple(record for record in images.records if record not in images.gallery)
    two = CategorySplit("two", frozenset({"cow", "bat"}))
    assert two.sizes(replace(images, records=(*gallery, *drawn)))[0] == (
        "two: 2 unseen categories, 13 queries, 10 gallery pictures, 10 with texts"
    )
    assert two.sizes(replace(images, records=gallery)) == (
        "two: 2 unseen categories, 10 gallery pictures, 10 with texts",
        "1 seen categories, 5 gallery pictures, 5 with texts",
    )
    published = CategorySplit("sketchy21", frozenset({"cow", "bat"})).sizes(images)
    assert published == (
        "sketchy21: 2 unseen categories, 13 queries (published: 12,694, another number), 10 gallery pictures "
        "(published: 10,453, another number)",
        "1 seen categories (published: 104, another number), 2 queries (published: 62,787, another number), 5 gallery "
        "pictures (published: 62,549, another number)",
    )
    counts = dict.fromkeys(("cow",), (12_694, 10_453))
    assert CategorySplit("sketchy21", frozenset({"cow"})).sizes(made(**counts)) == (
        "sketchy21: 1 unseen categories, 12,694 queries (published: 12,694), 10,453 gallery pictures (published: "
        "10,453)",
    )


def test_the_published_sizes_of_one_data_set_have_one_sum():
    one, two = PUBLISHED["sketchy21"], PUBLISHED["sketchy25"]
    for entry in (one, two):
        assert entry.train_queries + entry.queries == 75_481
        assert entry.train_gallery + entry.gallery == 73_002
    assert (one.seen + 21, two.seen + 25) == (125, 125)
    berlin = PUBLISHED["tuberlin30"]
    assert (berlin.train_queries + berlin.queries, berlin.train_gallery + berlin.gallery) == (20_000, 204_070)


def test_categories_are_held_out_by_their_names():
    images = made(**{f"name{i}": (2, 3) for i in range(20)})
    first, second = hold_out_categories(images, 0.1)
    kept, held = ({record.category for record in part.records} for part in (first, second))
    assert (len(kept), len(held), kept & held) == (18, 2, set())
    assert len({r.category for r in hold_out_categories(images, 0.01)[1].records}) == 2
    larger = {record.category for record in hold_out_categories(images, 0.4)[1].records}
    assert held < larger and len(larger) == 8
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 1"):
        hold_out_categories(images, 1)
    with pytest.raises(ValueError, match="more than 2 categories to hold some out, got 2"):
        hold_out_categories(made(cow=(1, 1), bat=(1, 1)), 0.5)


@pytest.mark.parametrize("folder", ["val", "test"])
def test_an_archive_in_two_folders_is_read_by_category(tmp_path, folder):
    root = trees.split_archive(tmp_path / "sketchy", ("axe", "dog"), ("cow", "bat"), folder)
    train, test = open_images(f"folders:{root}", "train"), open_images(str(root))
    assert (train.name, train.gallery_style, train.query_styles) == ("sketchy", "photo", ("sketch",))
    assert {record.category for record in train.records} == {"axe", "dog"}
    assert {record.category for record in test.records} == {"cow", "bat"}
    assert {record.instance for record in (*train.records, *test.records)} == {None}
    assert train.unseen_categories == test.unseen_categories == {"cow", "bat"}
    assert train.has_splits and test.records[0].path.startswith(f"{folder}/photo/bat/")
    assert test.read(test.records[0]).size == (20, 16)
    assert CategorySplit.of("subgroup", test).unseen_part(test).records == test.records
    with pytest.raises(ValueError, match=re.escape("split must be train or test for")):
        open_images(str(root), "val")


def test_sketchy_as_unpacked_and_tu_berlin_are_divided(tmp_path):
    file = tmp_path / "names.txt"
    for root, name in ((trees.sketchy(tmp_path / "Sketchy"), "cat"), (trees.tu_berlin(tmp_path / "TU"), "Alarm_Clock")):
        file.write_text(name)
        images = open_images(str(root))
        split = CategorySplit.of(str(file), images)
        unseen = split.unseen_part(images)
        assert {record.category for record in unseen.records} == split.unseen and len(unseen.gallery) == 2


def test_the_two_lists_of_tu_berlin_share_one_category() -> None:
    assert {*_listed("tuberlin30")} & {*_listed("tuberlin30-authors")} == {"rollerblades"}
    assert len({*_listed("tuberlin30-authors")}) == 30 and PUBLISHED["tuberlin30-authors"].gallery == 25_708
