"""The embedded data set: what is in it, that its splits keep apart, and that bad names are refused."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.data.emoji import SPLITS, STYLES, EmojiStyles


@pytest.fixture(scope="module")
def data() -> EmojiStyles:
    return EmojiStyles()


def test_counts(data: EmojiStyles) -> None:
    counts = {split: (len(data.concepts(split)), len(data.concepts(split, ("noto", "outline")))) for split in SPLITS}
    assert counts == {"train": (1086, 957), "val": (165, 141), "test": (310, 266)}
    assert len(data.concepts("all")) == 1561


def test_splits_share_no_concept(data: EmojiStyles) -> None:
    ids = {split: {concept.id for concept in data.concepts(split)} for split in SPLITS}
    assert not ids["train"] & ids["val"] and not ids["train"] & ids["test"] and not ids["val"] & ids["test"]


def test_seen_only_leaves_the_unseen_subgroups_to_the_test_split() -> None:
    data = EmojiStyles(seen_only=True)
    assert not any(concept.unseen_subgroup for split in ("train", "val") for concept in data.concepts(split))
    unseen = {concept.subgroup for concept in data.concepts("test") if concept.unseen_subgroup}
    assert unseen and not unseen & {concept.subgroup for concept in data.concepts("train")}


@pytest.mark.parametrize("style", STYLES)
def test_every_drawing_is_a_drawing(data: EmojiStyles, style: str) -> None:
    images = data.images(style, data.concepts("all", (style,)))
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 64, 64)
    assert (images.flatten(1).float().std(dim=1) > 1).all(), "a blank tile"


def test_line_styles_are_grey_and_colour_styles_are_not(data: EmojiStyles) -> None:
    concepts = data.concepts("test", STYLES)

    def colour(style: str) -> float:
        x = data.images(style, concepts).float()
        return (x.amax(1) - x.amin(1)).mean().item()

    assert max(colour("sketch"), colour("outline")) < 3 < min(colour(s) for s in ("photo3d", "flat", "noto", "twemoji"))


def test_one_image_equals_its_row(data: EmojiStyles) -> None:
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
        (lambda d: d.image("outline", "0023-20e3"), "concept_id '0023-20e3' has no drawing in style 'outline'"),
        (lambda d: d.images("apple", ["1f436"]), "style must be one of"),
    ],
)
def test_bad_names(data: EmojiStyles, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(data)
