"""Batches by category: each query once an epoch, its category's gallery pictures evenly, all from seed and step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.images import ResizeTo
from hystar_fast.methods.step_trained import Batching
from hystar_fast.train.category_data import open_categories
from hystar_fast.train.category_pairs import CategoryPairs
from hystar_fast.train.settings import DataSettings

RESIZE = ResizeTo((8, 8), "squash", "bilinear")
NUMBER = {"ant": 0, "bee": 1, "cat": 2}


def opened(bad: tuple[str, ...] = (), photos: int = 5, sketches: int = 7) -> ImageSet:
    """Return three categories; the left half of a picture has its category's grey, the right half its own."""
    records = [Record(f"photo/{c}/{i}", "photo", c, f"{c}{i}") for c in NUMBER for i in range(photos)]
    records += [Record(f"sketch/{c}/{i}", "sketch", c, f"{c}{i}") for c in NUMBER for i in range(sketches)]
    records.append(Record("sketch/dodo/0", "sketch", "dodo"))  # no photo

    def read(record: Record) -> Image.Image:
        style, category, number = record.path.split("/")
        if record.path in bad:
            raise ValueError("broken")
        picture = Image.new("RGB", (8, 8), (10 * NUMBER[category],) * 3)
        picture.paste((100 + 10 * int(number) + 5 * (style == "sketch"),) * 3, (4, 0, 8, 8))
        return picture

    return ImageSet("animals", "photo", tuple(records), read)


def pairs(images: ImageSet | None = None, **changes: object) -> CategoryPairs:
    return CategoryPairs(images or opened(), (), RESIZE, **{"batch_size": 4, **changes})


def test_every_query_comes_once_an_epoch_with_a_picture_of_its_category() -> None:
    found = pairs(seed=3)
    assert found.categories == ("ant", "bee", "cat") and len(found.queries) == 21 and found.batches_per_epoch == 5
    epochs = []
    for epoch in range(3):
        drawn = [pair for step in range(5) for pair in found.draw(5 * epoch + step)]
        assert all(q.category == t.category and q.style == "sketch" and t.style == "photo" for q, t in drawn)
        assert len({q.path for q, _ in drawn}) == len(drawn) == 20
        epochs.append([q.path for q, _ in drawn])
    assert epochs[0] != epochs[1] != epochs[2]


def test_gallery_pictures_are_drawn_evenly() -> None:
    found = pairs(batch_size=21)
    counts = Counter(target.path for step in range(400) for _, target in found.draw(step))
    expected = 400 * 7 / 5
    chi = sum((counts[f"photo/{c}/{i}"] - expected) ** 2 / expected for c in NUMBER for i in range(5))
    assert len(counts) == 15 and chi < 26.2  # 12 degrees of freedom, 1 %


def test_a_batch_holds_the_pictures_of_its_pairs() -> None:
    found = pairs(seed=1)
    batch = found.load(2)
    for row, (query, target) in enumerate(found.draw(2)):
        assert NUMBER[str(query.category)] == int(batch.labels[row])
        shown = [int(part[row, 0, 0, 7]) for part in (batch.queries, batch.targets)]
        assert shown == [105 + 10 * int(query.path[-1]), 100 + 10 * int(target.path[-1])]
        assert {int(part[row, 0, 0, 0]) for part in (batch.queries, batch.targets)} == {10 * int(batch.labels[row])}


def test_a_step_depends_on_seed_and_number_alone() -> None:
    one, two = pairs(seed=5, flip=0.5), pairs(seed=5, flip=0.5)
    for step in (0, 1, 2):
        one.load(step)
    a, b, other = one.load(7), two.load(7), pairs(seed=6, flip=0.5).load(7)
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("queries", "targets", "labels"))
    assert not torch.equal(a.queries, other.queries)
    assert one.identity() == two.identity() != pairs(opened(photos=4), seed=5, flip=0.5).identity()


def test_pictures_are_mirrored_independently() -> None:
    found = pairs(batch_size=21, flip=0.5)
    flips = [(b.queries[:, 0, 0, 0] >= 100, b.targets[:, 0, 0, 0] >= 100) for b in map(found.load, range(40))]
    query, target = (torch.cat([pair[side] for pair in flips]) for side in (0, 1))
    for joint in (query & target, query & ~target, ~query & target, ~query & ~target):
        assert abs(float(joint.float().mean()) - 0.25) < 0.05
    plain, every = pairs(flip=0.0).load(0), pairs(flip=1.0).load(0)
    assert torch.equal(plain.queries.flip(-1), every.queries) and torch.equal(plain.targets.flip(-1), every.targets)


def test_unreadable_pictures_are_replaced_and_counted() -> None:
    bad = ("photo/ant/0", "photo/ant/3", "sketch/bee/1", *(f"photo/cat/{i}" for i in range(5)))
    found = pairs(opened(bad), batch_size=21)
    for step in range(6):
        batch = found.load(step)
        assert batch.queries.shape == (21, 3, 8, 8)
        assert set(batch.labels.tolist()) == {0, 1}  # no photo of a cat can be read
        for row in range(21):
            assert int(batch.queries[row, 0, 0, 0]) == int(batch.targets[row, 0, 0, 0]) == 10 * int(batch.labels[row])
        assert not {100, 130} & set(batch.targets[batch.labels == 0][:, 0, 0, 7].tolist())
        assert 115 not in batch.queries[batch.labels == 1][:, 0, 0, 7].tolist()
    assert found.skipped == dict.fromkeys(bad, "broken")
    again = pairs(opened(bad), batch_size=21).load(5)
    assert torch.equal(again.queries, batch.queries) and torch.equal(again.targets, batch.targets)
    everything = tuple(record.path for record in opened().records)
    with pytest.raises(ValueError, match="animals must have a query and a gallery picture that can be read, got none"):
        pairs(opened(everything)).load(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CategoryPairs(opened(), ("photo",), RESIZE, batch_size=2), "'photo' is the gallery style"),
        (lambda: CategoryPairs(opened(), ("ink",), RESIZE, batch_size=2), "style must be one of ('photo', 'sketch')"),
        (lambda: pairs(batch_size=0), "batch_size must be at least 1, got 0"),
        (
            lambda: pairs(opened().select(categories=["ant"])),
            "animals must have at least 2 categories with a query and a gallery picture to train on, got 1",
        ),
    ],
)
def test_data_that_do_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_whole_categories_are_held_out_and_unseen_ones_left_out() -> None:
    data = open_categories(DataSettings("emoji", styles=["sketch"], validation="val"), Batching())
    assert data.metric == "mAP@all" and data.score is not None and data.styles == ("sketch",)
    whole = open_categories(DataSettings("emoji", styles=["sketch"], validation="none"), Batching())
    names, all_names = ({r.category for r in part.training.records} for part in (data, whole))
    assert whole.score is None and len(all_names) == 74 and len(names) == 67 and names < all_names
    assert not all_names & whole.training.unseen_categories
    assert all(record.instance is None for record in whole.training.records)
    assert data.notes == (
        "read 866 queries and 866 gallery pictures of 74 categories: sketch -> noto; 7 categories are held out for "
        "validation",
    )
    assert (
        len({r.category for r in open_categories(DataSettings("emoji", validation=0.5), Batching()).training.records})
        == 37
    )
    for validation in ("test", "train", 1.0, 0.0):
        with pytest.raises(ValueError, match="must be 'val', 'none' or the share of the categories to hold out"):
            open_categories(DataSettings("emoji", validation=validation), Batching())
    with pytest.raises(ValueError, match=r"data\.validation must leave a category to train on, got 0\.999: all 74"):
        open_categories(DataSettings("emoji", validation=0.999), Batching())


def test_data_without_categories(tmp_path: Path) -> None:
    for style in ("photos", "sketches"):
        (tmp_path / style).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / style / f"{i}.png")
    with pytest.raises(ValueError, match=r"data\.source must have categories to train on them, got"):
        open_categories(DataSettings(f"folders:{tmp_path}"), Batching())
