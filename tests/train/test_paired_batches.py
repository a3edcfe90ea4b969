"""Batches of pairs: order, partners, crops and what depends on the seed and the step alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet, read_by_path
from hystar_fast.data.images import ResizeTo
from hystar_fast.data.text_pairs import load_crossmodal
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.step_trained import Batching
from hystar_fast.train.paired_batches import PairedBatches
from tests.support.fgan_cases import sentences

RESIZE = ResizeTo((16, 16))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return load_crossmodal(sentences(tmp_path_factory.mktemp("pairs"), train=3), "train")


def batches(images: ImageSet, size: int = 5, seed: int = 0, **how: object) -> PairedBatches:
    return PairedBatches(
        images, (), RESIZE, Batching("pairs", texts=True, by="instance", **how), batch_size=size, seed=seed
    )


def test_an_epoch_has_every_pair_once_and_keeps_a_last_batch_of_two(images: ImageSet) -> None:
    found = batches(images)  # 12 pairs: 5, 5, 2
    assert found.batches_per_epoch == 3 and batches(images, 11).batches_per_epoch == 1
    for epoch in range(2):
        rows = [row for step in range(3) for row in found.draw(3 * epoch + step)[0]]
        assert sorted(rows) == list(range(12)) and rows != list(range(12))
    assert found.draw(0) != found.draw(3) and found.draw(4) == batches(images).draw(4)
    assert found.draw(0) != batches(images, seed=1).draw(0)


def test_texts_stand_beside_their_own_pictures(images: ImageSet) -> None:
    found = batches(images)
    batch = found.load(1)
    assert batch.gallery is not None and batch.gallery.shape == (5, 3, 16, 16) and batch.gallery.dtype == torch.uint8
    assert found.categories == ("ant", "bee", "cat", "dog")
    for text, row, query, label in zip(batch.queries, batch.gallery_rows, batch.query_rows, batch.labels, strict=True):
        record = found.gallery[row]
        assert record.captions == (text,) and record.instance == found.queries[query].instance
        assert found.categories[label] == record.category and str(record.category) in text


def test_another_picture_of_the_category_is_drawn_each_time(images: ImageSet) -> None:
    found = PairedBatches(images, (), RESIZE, Batching("pairs", texts=True), batch_size=12)
    drawn = set()
    for step in range(8):
        for query, answer in zip(*found.draw(step), strict=True):
            assert found.queries[query].category == found.gallery[answer].category
            drawn.add((query, answer))
    assert len(drawn) > 24  # of 36


def test_crops_change_with_the_step_and_keep_at_least_their_share(images: ImageSet) -> None:
    found = batches(images, 12, crop=0.5)
    assert not found.is_fixed and batches(images).is_fixed
    first, again, other = found.load(0), batches(images, 12, crop=0.5).load(0), found.load(1)
    assert torch.equal(first.gallery, again.gallery)
    row = int(first.gallery_rows[0])
    place = other.gallery_rows.tolist().index(row)
    assert not torch.equal(first.gallery[0], other.gallery[place])
    ramp = torch.arange(64, dtype=torch.float32).mul(4).clamp(max=255).to(torch.uint8).expand(1, 3, 64, 64)
    parts = found._cropped(ramp.expand(200, -1, -1, -1), torch.Generator().manual_seed(0)).float()
    shares = (parts[..., -1] - parts[..., 0]).mean((1, 2)) / 252  # the width that each crop shows
    assert shares.max() <= 1.001 and shares.min() > 0.55  # sqrt(0.5 x 3/4) = 0.61, less the ends of the bilinear filter


def test_what_cannot_make_pairs_is_refused(images: ImageSet) -> None:
    one = images.select(categories=("ant",))
    with pytest.raises(ValueError, match="must have at least 2 categories with a query and its gallery picture to"):
        batches(one)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        batches(images, 1)
    with pytest.raises(ValueError, match="styles must be query styles, but 'photo' is the gallery style"):
        PairedBatches(images, ("photo",), RESIZE, Batching("pairs"), batch_size=2)


def test_the_tree_is_not_changed(images: ImageSet) -> None:
    found = batches(images)
    assert found.skipped == {} and not found.is_stored and Path(found.queries[0].path).suffix == ".png"
    assert "12 pairs, " in found.identity() and found.identity() != batches(images, crop=0.5).identity()


def test_pairs_name_the_instance_of_the_picture_and_the_style_of_the_query() -> None:
    drawings = load_emoji("train").select(limit=20)
    how = Batching("pairs", by="instance", stored=False)
    found = PairedBatches(drawings, ("outline", "sketch"), RESIZE, how, batch_size=12)
    assert found.modalities == ("noto", "outline", "sketch") and found.training is drawings and not found.is_fixed
    batch = found.load(0)
    asked = [found.queries[row] for row in batch.query_rows]
    assert [found.modalities[kind] for kind in batch.kinds] == [record.style for record in asked]
    assert {*batch.kinds.tolist()} == {1, 2}
    names = [found.gallery[row].instance for row in batch.gallery_rows]
    assert names == [record.instance for record in asked] and len({*names}) == len({*batch.instances.tolist()})
    pictures = read_by_path(drawings, asked, RESIZE, {})
    assert torch.equal(batch.queries, torch.stack([pictures[record.path] for record in asked])), "whole, not cropped"
    found.store(Pixels())  # type: ignore[arg-type]
    assert not found.is_stored, "the method was asked for nothing"


def test_texts_have_no_style(images: ImageSet) -> None:
    assert batches(images).load(0).kinds.tolist() == [0] * 5
