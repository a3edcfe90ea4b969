"""The protocol, and evaluation against encoders whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.evaluate import difference, evaluate, images_to_embed
from hystar_fast.retrieval.placement import displace, place_randomly
from hystar_fast.retrieval.protocol import HARD_STYLES, QUERY_STYLES, load_split, low_resolution


class Oracle(Method):
    """Knows which concept a drawing shows (its number is painted into the first pixel), and what a name means."""

    name = "oracle"

    def __init__(self, names: Sequence[str], wrong: Sequence[int] = ()) -> None:
        self.names, self.wrong = list(names), torch.tensor(list(wrong), dtype=torch.int64)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        numbers = (images[:, 0, 0, 0] * 255).round().long()
        asked = images[:, 1, 0, 0] > 0.5
        wrong = asked & (numbers[:, None] == self.wrong).any(1)
        return F.one_hot((numbers + wrong.long()) % len(self.names), len(self.names)).float()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.eye(len(self.names))[[self.names.index(text) for text in texts]]


@pytest.fixture(scope="module")
def concepts():
    loaded = load_split("test", limit=40)
    for style, images in loaded.images.items():
        images[:, 0, 0, 0] = torch.arange(40, dtype=torch.uint8)
        images[:, 1, 0, 0] = 0 if style == "noto" else 255
    return loaded


def test_a_perfect_encoder_finds_everything(concepts):
    found = evaluate(Oracle(concepts.texts), concepts)
    for style in QUERY_STYLES:
        recall = found.recall(style, 1)
        assert recall is not None
        assert recall.value == 1.0
        assert len(found.ranks[style]) == len(concepts.rows(style))


def test_recall_counts_only_the_queries_that_were_asked(concepts):
    missing = set(range(40)) - set(concepts.rows("outline").tolist())
    assert missing, "this split should have concepts without an outline"
    wrong = [concepts.rows("outline").tolist()[0], next(iter(missing))]
    found = evaluate(Oracle(concepts.texts, wrong), concepts)
    n = len(concepts.rows("outline"))
    outline, sketch = found.recall("outline", 1), found.recall("sketch", 1)
    assert outline is not None and sketch is not None
    assert outline.value == pytest.approx((n - 1) / n)
    assert sketch.value == pytest.approx(38 / 40)
    mean = found.mean_recall(["outline", "sketch"], 1)
    assert mean is not None
    assert mean.value == pytest.approx(((n - 1) / n + 38 / 40) / 2)


def test_unseen_queries_are_ranked_against_the_whole_gallery(concepts):
    row = int(concepts.unseen.nonzero()[0])
    found = evaluate(Oracle(concepts.texts, [row]), concepts)
    unseen = found.recall("sketch", 1, unseen_only=True)
    assert unseen is not None
    count = int(concepts.unseen.sum())
    assert unseen.value == pytest.approx((count - 1) / count)
    assert found.gallery.shape[0] == 40


def test_the_paired_difference(concepts):
    perfect = evaluate(Oracle(concepts.texts), concepts)
    worse = evaluate(Oracle(concepts.texts, range(0, 40, 2)), concepts)
    found = difference(perfect, worse, ["sketch"])
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert 0 < found.low < 0.5 < found.high
    same = difference(perfect, perfect)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="must be evaluated on the same queries"):
        difference(perfect, evaluate(Pixels(), load_split("test", limit=20)))


def test_a_floor_answers_no_text(concepts):
    found = evaluate(Pixels(), concepts)
    assert "text" not in found.ranks
    assert found.recall("text", 1) is None
    assert found.mean_recall(["sketch", "text"], 1) is None


def test_a_given_gallery_is_used_and_progress_adds_up(concepts):
    done: list[int] = []
    whole = evaluate(Pixels(), concepts, progress=done.append)
    assert sum(done) == images_to_embed(concepts)
    again = evaluate(Pixels(), concepts, gallery=whole.gallery)
    assert all(torch.equal(again.ranks[style], whole.ranks[style]) for style in whole.ranks)


def test_the_splits_share_no_concept_and_training_holds_no_unseen_subgroup():
    train, val, test = (load_split(split, ()) for split in ("train", "val", "test"))
    names = [{concept.id for concept in part.concepts} for part in (train, val, test)]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert len(test) == 310
    assert not bool(train.unseen.any())
    assert int(test.unseen.sum()) == 65
    assert not {c.subgroup for c in train.concepts} & {c.subgroup for c in test.concepts if c.unseen_subgroup}


def test_every_query_style_is_another_drawing_than_the_gallery():
    test = load_split("test")
    for style in QUERY_STYLES:
        if style != "text":
            rows = test.rows(style)
            same = (test.images[style][rows] == test.images["noto"][rows]).flatten(1).all(1)
            assert not bool(same.any())
    assert len(test.rows("outline")) == 266
    assert set(HARD_STYLES) < set(QUERY_STYLES)


def test_low_resolution_keeps_no_more_than_its_side():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    low = low_resolution(images, 8)
    assert low.shape == images.shape
    assert torch.linalg.matrix_rank(low[0, 0].double(), atol=12.0) <= 8
    plain = torch.full((1, 3, 64, 64), 77, dtype=torch.uint8)
    assert torch.equal(low_resolution(plain), plain)
    assert low_resolution(images[:0]).shape == (0, 3, 64, 64)
    with pytest.raises(ValueError, match=r"side must lie in 1\.\.64, got 65"):
        low_resolution(images, 65)


def test_bad_splits_styles_and_limits_are_named():
    with pytest.raises(ValueError, match="split must be one of"):
        load_split("dev")
    with pytest.raises(ValueError, match="style must be one of"):
        load_split("test", ("cubism",))
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_split("test", limit=0)
    with pytest.raises(ValueError, match="style must be one of"):
        load_split("test", ("sketch",), limit=3).rows("outline")


def test_displaced_queries_move_and_the_gallery_stays(concepts):
    moved = displace(concepts, 0.2, seed=3)
    assert torch.equal(moved.images["noto"], concepts.images["noto"])
    assert not torch.equal(moved.images["sketch"], concepts.images["sketch"])
    assert torch.equal(moved.images["sketch"], displace(concepts, 0.2, seed=3).images["sketch"])


def test_placement_keeps_white_white_and_changes_nothing_at_zero():
    generator = torch.Generator().manual_seed(0)
    white = torch.ones(4, 3, 16, 16)
    assert torch.allclose(place_randomly(white, 0.3, generator), white)
    noise = torch.rand(4, 3, 16, 16)
    assert place_randomly(noise, 0.0, generator) is noise
    with pytest.raises(ValueError, match=r"jitter must lie in 0\.\.1"):
        place_randomly(noise, 1.5, generator)
