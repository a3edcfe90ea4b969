"""Pictures and texts in both directions against the full matrix, by category and by pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.unseen import CategorySplit
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.crossmodal import evaluate_crossmodal
from hystar_fast.retrieval.definitions import Metric, measure
from hystar_fast.retrieval.evaluate import KindResult
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.zero_shot import number_labels
from tests.support.distances import Colours
from tests.support.turned_queries import TurnedQueries

AP = Metric.parse("mAP@all")
METRICS = [AP, Metric.parse("R@5")]


def unseen(count: int = 40, split: str = "test") -> ImageSet:
    images = load_emoji(split, ("sketch",), seen_only=False)
    return CategorySplit.of("subgroup", images).unseen_part(images).select(limit=count)


def kinds(*arguments: object, **options: object) -> dict[str, KindResult]:
    return {kind.kind: kind for kind in evaluate_crossmodal(*arguments, metrics=METRICS, **options).kinds}


def embedded(method: Colours | TurnedQueries, images: ImageSet) -> tuple[Tensor, Tensor, list[str | None], list]:
    """Return vectors of pictures and of all their texts, the categories of the texts, and their pictures' records."""
    records = images.gallery
    with torch.no_grad():
        pictures = method.encode_image(torch.stack([method.resize(images.read(record)) for record in records]))
        texts = [(caption, record) for record in records for caption in record.captions]
        return (
            pictures,
            method.encode_text([t for t, _ in texts]),
            [r.category for _, r in texts],
            [r for _, r in texts],
        )


@pytest.mark.parametrize("method", [TurnedQueries(), Colours()], ids=["cosine", "distance"])
@pytest.mark.parametrize("by", ["category", "instance"])
def test_both_directions_are_those_of_the_full_matrix(method, by):
    images = unseen()
    found = kinds(method, images, relevant=by)
    pictures, texts, _, owners = embedded(method, images)
    labels = number_labels([getattr(record, by) for record in (*images.gallery, *owners)])
    of_pictures, of_texts = labels[: len(pictures)], labels[len(pictures) :]
    for name, queries, gallery, wanted, items in (
        ("I2T", pictures, texts, of_pictures, of_texts),
        ("T2I", texts, pictures, of_texts, of_pictures),
    ):
        expected = measure(queries, gallery, wanted, items, METRICS, similarity=method.similarity)
        assert found[name].values == {str(metric): expected.interval(metric) for metric in METRICS}
        assert found[name].chance == expected.chance
        assert torch.equal(found[name].ranks, expected.first - 1)


def test_the_average_is_the_mean_of_both_directions_and_resamples_pairs():
    method, images = TurnedQueries(), unseen()
    found = kinds(method, images)
    assert [*found] == ["I2T", "T2I", "Avg"]
    values = [found[name].values["mAP@all"] for name in found]
    assert values[2].value == pytest.approx((values[0].value + values[1].value) / 2)
    pictures, texts, categories, _ = embedded(method, images)
    labels = number_labels(categories)
    both = [measure(*pair, labels, labels, [AP]).values[AP] for pair in ((pictures, texts), (texts, pictures))]
    assert values[2] == bootstrap_mean(torch.stack(both))
    assert evaluate_crossmodal(method, images).ranks.by_kind.keys() == {"I2T", "T2I"}


def test_queries_and_galleries_come_from_two_parts():
    queries, support = unseen(12), unseen(30, "train")
    assert not {r.path for r in queries.records} & {r.path for r in support.records}
    method = TurnedQueries()
    found = evaluate_crossmodal(method, queries, support, metrics=[AP])
    (asked, asked_texts, wanted, _), (pictures, texts, items, _) = (
        embedded(method, part) for part in (queries, support)
    )
    labels = number_labels([*wanted, *items])
    both = labels[: len(wanted)], labels[len(wanted) :]
    for kind, query, gallery in ((found.kinds[0], asked, texts), (found.kinds[1], asked_texts, pictures)):
        assert kind.values["mAP@all"] == measure(query, gallery, *both, [AP]).interval(AP)
    assert found.gallery[1] == len(support.gallery) and found.task == "crossmodal"


def test_every_caption_is_a_text_and_then_there_is_no_average():
    images = unseen(6)
    captions = {record.instance: (f"{record.instance}", "something else") for record in images.gallery}
    records = tuple(replace(record, captions=captions[record.instance]) for record in images.records)
    found = kinds(TurnedQueries(), replace(images, records=records), relevant="instance")
    assert [*found] == ["I2T", "T2I"]
    assert (found["I2T"].n, found["T2I"].n) == (6, 12)


def test_the_style_decides_how_pictures_are_encoded():
    method = TurnedQueries()
    kinds(method, unseen(5))
    assert {name for name, _, _ in method.calls} == {"image"}
    method.calls.clear()
    kinds(method, unseen(5), style="sketch")
    assert {name for name, _, _ in method.calls} == {"query"}


def test_what_cannot_be_ranked_is_refused():
    images = unseen(4)
    with pytest.raises(ValueError, match="method must take text for task 'crossmodal', got 'pixels'"):
        evaluate_crossmodal(Pixels(), images)
    with pytest.raises(ValueError, match=r"relevant must be one of \('category', 'instance'\), got 'style'"):
        evaluate_crossmodal(Colours(), images, relevant="style")
    bare = replace(images, records=tuple(replace(record, captions=()) for record in images.records))
    with pytest.raises(ValueError, match="readable pictures of style 'noto' with captions, got none in emoji"):
        evaluate_crossmodal(Colours(), bare)
    unnamed = replace(images, records=tuple(replace(record, category=None) for record in images.records))
    with pytest.raises(ValueError, match="images must have category labels for relevant='category', got emoji without"):
        evaluate_crossmodal(Colours(), unnamed, relevant="category")
    assert evaluate_crossmodal(Colours(), unnamed).protocol.endswith("relevant: the same instance")
