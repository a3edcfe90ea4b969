"""The embedded data set: its contents, its disjoint splits, and the rejection of bad names."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.data.emoji import HARD_STYLES, QUERY_STYLES, SPLITS, STYLES, EmojiStyles, load_emoji, low_resolution
from hystar_fast.data.images import to_picture, to_uint8


@pytest.fixture(scope="module")
def data() -> EmojiStyles:
    return EmojiStyles()


def test_every_split_has_its_number_of_concepts(data: EmojiStyles) -> None:
    counts = {split: (len(data.concepts(split)), len(data.concepts(split, ("noto", "outline")))) for split in SPLITS}
    assert counts == {"train": (1086, 957), "val": (165, 141), "test": (310, 266)}
    assert len(data.concepts("all")) == 1561


def test_splits_share_no_concept(data: EmojiStyles) -> None:
    ids = {split: {concept.id for concept in data.concepts(split)} for split in SPLITS}
    assert not ids["train"] & ids["val"] and not ids["train"] & ids["test"] and not ids["val"] & ids["test"]


def test_seen_only_keeps_unseen_subgroups_in_the_test_split_alone() -> None:
    data = EmojiStyles(seen_only=True)
    assert not any(concept.unseen_subgroup for split in ("train", "val") for concept in data.concepts(split))
    unseen = {concept.subgroup for concept in data.concepts("test") if concept.unseen_subgroup}
    assert unseen and not unseen & {concept.subgroup for concept in data.concepts("train")}


@pytest.mark.parametrize("style", STYLES)
def test_no_drawing_is_blank(data: EmojiStyles, style: str) -> None:
    images = data.images(style, data.concepts("all", (style,)))
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 64, 64)
    assert (images.flatten(1).float().std(dim=1) > 1).all(), "a blank tile"


def test_line_styles_are_grey_and_colour_styles_are_not(data: EmojiStyles) -> None:
    concepts = data.concepts("test", STYLES)

    def colour(style: str) -> float:
        x = data.images(style, concepts).float()
        return (x.amax(1) - x.amin(1)).mean().item()

    assert max(colour("sketch"), colour("outline")) < 3 < min(colour(s) for s in ("photo3d", "flat", "noto", "twemoji"))


def test_image_and_images_return_the_same_pixels(data: EmojiStyles) -> None:
    image = torch.tensor(list(data.image("noto", "1f436").get_flattened_data())).view(64, 64, 3)
    assert torch.equal(image.permute(2, 0, 1).to(torch.uint8), data.images("noto", ["1f436"])[0])
    assert data.caption("1f436") == "dog face"
    assert data.images("noto", []).shape == (0, 3, 64, 64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.concepts("dev"), "split must be one of .* got 'dev'"),
        (lambda d: d.concepts("test", ("apple",)), "style must be one of .* got 'apple'"),
        (lambda d: d.image("noto", "zzz"), "concept_id must be one of the 1561 embedded ids, got 'zzz'"),
        (
            lambda d: d.image("outline", "0023-20e3"),
            "concept_id must have a drawing in style 'outline', got '0023-20e3'",
        ),
        (lambda d: d.images("apple", ["1f436"]), "style must be one of"),
    ],
)
def test_bad_names_are_rejected(data: EmojiStyles, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(data)


def test_the_gallery_is_noto_and_queries_are_other_drawings_of_its_concepts(data: EmojiStyles) -> None:
    test = load_emoji("test")
    assert (test.name, test.gallery_style, test.query_styles) == ("emoji", "noto", QUERY_STYLES)
    assert test.headline_styles == HARD_STYLES and test.has_splits and test.templates == ("{}",)
    assert [record.instance for record in test.gallery] == [concept.id for concept in data.concepts("test")]
    assert {style: len(test.of_style(style)) for style in QUERY_STYLES} == {
        "outline": 266,
        "sketch": 310,
        "lowres": 310,
        "twemoji": 310,
    }
    drawings = {record.path: to_uint8(test.read(record)) for record in test.records}
    for record in test.records:
        concept = data.concept(str(record.instance))
        assert (record.category, record.caption) == (concept.subgroup, concept.name)
        if record.style not in ("noto", "lowres"):
            assert torch.equal(drawings[record.path], data.images(record.style, [concept])[0])
        if record.style != "noto":
            assert not torch.equal(drawings[record.path], drawings[f"noto/{concept.id}"])


def test_training_has_no_unseen_category_and_the_test_split_lists_them() -> None:
    train, val, test = (load_emoji(split) for split in SPLITS)
    assert not {record.category for record in train.records} & train.unseen_categories
    unseen = [record for record in test.gallery if record.category in test.unseen_categories]
    assert len(unseen) == 65 and {record.category for record in val.records} & val.unseen_categories
    assert {r.category for r in load_emoji("train", seen_only=False).records} & train.unseen_categories
    assert len({record.category for record in load_emoji("test", category="group").records}) == 8


def test_other_styles_can_be_queries() -> None:
    images = load_emoji("val", ("flat", "photo3d"))
    assert images.query_styles == ("flat", "photo3d") and images.headline_styles == ()
    with pytest.raises(ValueError, match=r"style must be one of .* got 'cubism'"):
        load_emoji("val", ("cubism",))
    with pytest.raises(ValueError, match=r"split must be one of .* got 'dev'"):
        load_emoji("dev")
    with pytest.raises(ValueError, match=r"category must be one of \('subgroup', 'group'\), got 'kind'"):
        load_emoji("val", category="kind")


def test_low_resolution_keeps_at_most_its_side_in_rank() -> None:
    picture = to_picture(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8))
    low = to_uint8(low_resolution(picture, 8))
    assert low.shape == (3, 64, 64)
    assert torch.linalg.matrix_rank(low[0].double(), atol=12.0) <= 8
    plain = to_picture(torch.full((3, 64, 64), 77, dtype=torch.uint8))
    assert torch.equal(to_uint8(low_resolution(plain)), to_uint8(plain))
    with pytest.raises(ValueError, match=r"side must be between 1 and 64, got 65"):
        low_resolution(picture, 65)


def test_low_resolution_queries_are_made_from_photo3d(data: EmojiStyles) -> None:
    images = load_emoji("val")
    record = images.of_style("lowres")[7]
    made = to_uint8(low_resolution(data.image("photo3d", str(record.instance)), 12))
    assert torch.equal(to_uint8(images.read(record)), made)
