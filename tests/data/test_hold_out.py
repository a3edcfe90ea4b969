"""The parts of data without splits: their sizes, that they share no picture, and that they stay when data are added."""

from __future__ import annotations

import pytest
from PIL import Image

from hystar_fast.data.hold_out import PARTS, Shares
from hystar_fast.data.image_set import ImageSet, Record


def images_of(records: list[Record]) -> ImageSet:
    return ImageSet("mine", "photo", tuple(records), lambda record: Image.new("RGB", (2, 2)))


def pairs(count: int) -> ImageSet:
    names = [f"n{i}" for i in range(count)]
    return images_of([Record(f"{style}/{n}.png", style, None, n) for style in ("photo", "sketch") for n in names])


@pytest.mark.parametrize(
    ("count", "sizes"), [(4, (2, 1, 1)), (7, (5, 1, 1)), (8, (4, 2, 2)), (40, (28, 4, 8)), (1000, (700, 100, 200))]
)
def test_a_fifth_is_for_testing_and_a_tenth_for_validation(count, sizes):
    images = pairs(count)
    shares = Shares.of(images)
    parts = [shares.part(images, name) for name in PARTS]
    assert tuple(len(part.gallery) for part in parts) == sizes
    assert sum(len(part.records) for part in parts) == 2 * count
    names = [{record.instance for record in part.records} for part in parts]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]


def test_shares_keep_their_parts_when_pairs_are_added():
    before, after = pairs(40), pairs(60)
    shares = Shares.of(before)
    for name in PARTS:
        kept = {record.path for record in shares.part(after, name).records}
        assert {record.path for record in shares.part(before, name).records} <= kept


def test_a_picture_of_several_pairs_is_in_one_part():
    names = [f"n{i}" for i in range(30)]
    records = [Record(f"photo/{n}.png", "photo", None, n) for n in names]
    images = images_of([*records, *(Record("sketch/shared.png", "sketch", None, n) for n in names)])
    shares = Shares.of(images)
    holding = [name for name in PARTS if any("shared" in r.path for r in shares.part(images, name).records)]
    assert holding == ["test"]


def test_data_with_categories_alone_are_divided_by_picture():
    images = images_of([Record(f"{s}/{i}.png", s, "cat") for s in ("photo", "sketch") for i in range(50)])
    shares = Shares.of(images)
    assert [len(shares.part(images, name).records) for name in PARTS] == [70, 10, 20]


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match=r"mine must have at least 4 pairs to hold out some .* got 3"):
        Shares.of(pairs(3))
