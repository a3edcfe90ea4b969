"""Evaluation of encoders whose ranks are known: ranks, intervals and differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.emoji import QUERY_STYLES, load_emoji
from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.evaluate import TEXT, evaluate
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.ranks import QueryIds, Ranks, paired_difference

KINDS = (*QUERY_STYLES, TEXT)


class Oracle(Method):
    """A perfect encoder: it reads the number of the concept from the pixels, or its name; queries in `wrong` fail."""

    name = "oracle"

    def __init__(self, images: ImageSet, wrong: Sequence[int] = ()) -> None:
        self.names = [str(record.caption) for record in images.gallery]
        self.wrong = torch.tensor(list(wrong), dtype=torch.int64)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        numbers, is_query = images[:, 0, 0, 0].long(), images[:, 1, 0, 0] > 127
        wrong = is_query & (numbers[:, None] == self.wrong).any(1)
        return F.one_hot((numbers + wrong.long()) % len(self.names), len(self.names)).float()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.eye(len(self.names))[[self.names.index(text) for text in texts]]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    chosen = load_emoji("test").select(limit=40)
    number = {record.instance: i for i, record in enumerate(chosen.gallery)}

    def read(record: Record) -> Image.Image:
        return Image.new("RGB", (64, 64), (number[record.instance], 255 * (record.style != "noto"), 0))

    return replace(chosen, read=read)


def rows_of(images: ImageSet, style: str) -> list[int]:
    number = {record.instance: i for i, record in enumerate(images.gallery)}
    return [number[record.instance] for record in images.of_style(style)]


def test_a_perfect_encoder_finds_everything(images):
    ranks = evaluate(Oracle(images), images, kinds=KINDS).ranks
    assert tuple(ranks.by_kind) == KINDS
    for style in QUERY_STYLES:
        assert ranks.recall([style], 1).value == 1.0
        assert len(ranks.by_kind[style]) == len(images.of_style(style))
    assert ranks.recall([TEXT], 1).value == 1.0


def test_recall_counts_only_existing_queries(images):
    missing = set(range(40)) - set(rows_of(images, "outline"))
    assert missing, "this split should have concepts without an outline"
    wrong = [rows_of(images, "outline")[0], next(iter(missing))]
    ranks = evaluate(Oracle(images, wrong), images, kinds=KINDS).ranks
    n = len(images.of_style("outline"))
    assert ranks.recall(["outline"], 1).value == pytest.approx((n - 1) / n)
    assert ranks.recall(["sketch"], 1).value == pytest.approx(38 / 40)
    assert ranks.recall(["outline", "sketch"], 1).value == pytest.approx(((n - 1) / n + 38 / 40) / 2)


def test_unseen_queries_are_ranked_against_the_whole_gallery(images):
    unseen = [i for i, record in enumerate(images.gallery) if record.category in images.unseen_categories]
    found = evaluate(Oracle(images, unseen[:1]), images, kinds=KINDS)
    recall = found.ranks.recall(["sketch"], 1, unseen_only=True)
    assert recall.value == pytest.approx((len(unseen) - 1) / len(unseen))
    assert found.ranks.ids.unseen.nonzero().flatten().tolist() == unseen
    assert found.gallery == ("noto", 40)


def test_the_paired_difference_resamples_queries(images):
    perfect = evaluate(Oracle(images), images, kinds=KINDS).ranks
    worse = evaluate(Oracle(images, range(0, 40, 2)), images, kinds=KINDS).ranks
    found = paired_difference(perfect, worse, ["sketch"])
    assert found is not None and found.value == pytest.approx(0.5)
    assert 0 < found.low < 0.5 < found.high
    both = paired_difference(perfect, worse, ["sketch", "outline"])
    assert both == bootstrap_mean(perfect.hits(["sketch", "outline"], 1) - worse.hits(["sketch", "outline"], 1))
    same = paired_difference(perfect, perfect, ["sketch"])
    assert same is not None and (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    fewer = evaluate(Pixels(), load_emoji("test").select(limit=20), kinds=KINDS).ranks
    with pytest.raises(ValueError, match="must have the same queries"):
        paired_difference(perfect, fewer, ["sketch"])


def test_a_method_without_text_has_no_text_queries(images):
    ranks = evaluate(Pixels(), images, kinds=KINDS).ranks
    assert tuple(ranks.by_kind) == QUERY_STYLES
    assert ranks.recall([TEXT], 1) is None and ranks.recall(["sketch", TEXT], 1) is None
    assert paired_difference(ranks, ranks, [TEXT]) is None


def test_given_embeddings_are_used_and_new_ones_are_stored(images):
    done: list[int] = []
    embedded: dict[str, Embedded] = {}
    whole = evaluate(Pixels(), images, kinds=KINDS, embedded=embedded, progress=done.append)
    assert sum(done) == len(images.records) and set(embedded) == set(images.styles)
    again = evaluate(Pixels(), images, kinds=KINDS, embedded=embedded, progress=done.append)
    assert sum(done) == len(images.records)
    for kind, ranks in whole.ranks.by_kind.items():
        assert torch.equal(again.ranks.by_kind[kind], ranks)
    swapped = {"noto": Embedded(embedded["noto"].records, embedded["noto"].vectors.flip(0))}
    other = evaluate(Pixels(), images, kinds=("sketch",), embedded=swapped).ranks
    assert not torch.equal(other.by_kind["sketch"], whole.ranks.by_kind["sketch"])


def test_only_the_requested_kinds_are_measured(images):
    every = [result.kind for result in evaluate(Oracle(images), images).kinds]
    joint = [kind for s in QUERY_STYLES for kind in (s, f"{s}+text, max", f"{s}+text, softmax")]
    assert every == [*joint, TEXT]
    some = evaluate(Oracle(images), images, kinds=("sketch", "joint")).kinds
    assert [result.kind for result in some] == ["sketch", "sketch+text, max", "sketch+text, softmax"]
    with pytest.raises(ValueError, match=r"kinds must be some of .* of emoji, got 'oil'"):
        evaluate(Oracle(images), images, kinds=("oil",))


def records_of(kinds: dict[str, list[str | None]]) -> tuple[Record, ...]:
    return tuple(
        Record(f"{style}/{i}", style, None, instance)
        for style, found in kinds.items()
        for i, instance in enumerate(found)
    )


def test_queries_for_one_picture_share_an_id_in_every_style():
    records = records_of({"photo": ["a", "b"], "sketch": ["b", "a", "b"], "art": ["b", "b", None]})
    images = ImageSet("few", "photo", records, lambda record: Image.new("RGB", (4, 4)))
    ids = QueryIds.of(images, {style: images.of_style(style) for style in ("sketch", "art")})
    # the gallery numbers a and b; the second sketch for b has a number of its own, which the second art for b shares
    assert ids.by_kind["sketch"].tolist() == [1, 0, 2] and ids.by_kind["art"].tolist() == [1, 2, 3]
    assert len(ids) == 4
    again = QueryIds.from_dict(ids.to_dict())
    assert again.to_dict() == ids.to_dict() and torch.equal(again.unseen, ids.unseen)


def test_ids_of_two_runs_merge_unless_the_data_changed():
    records = records_of({"photo": ["a", "b"], "sketch": ["b", "a"], "art": ["a", "b"]})
    images = ImageSet("few", "photo", records, lambda record: Image.new("RGB", (4, 4)))
    first, second = (QueryIds.of(images, {style: images.of_style(style)}) for style in ("sketch", "art"))
    assert set(first.merge(second).by_kind) == {"sketch", "art"}
    reversed_queries = replace(images, records=(*records[:2], *reversed(records[2:])))
    with pytest.raises(ValueError, match="other must have the same queries 'sketch', got others"):
        first.merge(QueryIds.of(reversed_queries, {"sketch": reversed_queries.of_style("sketch")}))


def test_ranks_must_match_their_query_ids():
    ids = QueryIds(torch.zeros(3, dtype=torch.bool), {"sketch": torch.tensor([0, 2])})
    with pytest.raises(ValueError, match=r"ranks of 'sketch' must be 2, one a query, got 3"):
        Ranks(ids, {"sketch": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"ranks must be of queries \('sketch',\), got 'art'"):
        Ranks(ids, {"art": torch.zeros(2, dtype=torch.int64)})
    hits = Ranks(ids, {"sketch": torch.tensor([0, 4])}).hits(["sketch"], 1)
    assert hits.nan_to_num(-1).tolist() == [[1.0, -1.0, 0.0]]
