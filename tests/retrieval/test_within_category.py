"""Ranks of one picture among those of its category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.open import open_images
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.similarity import COSINE
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.within_category import PROTOCOL, WITHIN, measure_within
from tests.support import picture_trees as trees

R1, MAP = Metric.parse("R@1"), Metric.parse("mAP@all")


def embedded(names: Sequence[tuple[str | None, str | None]], vectors: list[list[float]]) -> Embedded:
    """Return embeddings of records with (category, instance)."""
    records = tuple(Record(str(i), "photo", category, instance) for i, (category, instance) in enumerate(names))
    return Embedded(records, torch.tensor(vectors, dtype=torch.float32))


def test_pictures_of_other_categories_do_not_count() -> None:
    gallery = embedded([("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")], [[0, 1], [1, 0], [0.6, 0.8], [0.8, 0.6]])
    queries = embedded([("a", "3"), ("a", "4"), ("b", "2")], [[1, 0], [1, 0], [0, 1]])
    found = measure_within(queries, gallery, [R1, MAP], COSINE)
    assert found.first.tolist() == [2, 1, 1] and found.counts.tolist() == [1, 1, 1] and found.gallery == 3
    assert found.values[R1].tolist() == [0, 1, 1] and found.values[MAP].tolist() == [0.5, 1, 1]


def test_queries_without_their_picture_or_their_category_have_no_value() -> None:
    gallery = embedded([("a", "1"), ("a", None), (None, "5")], [[0, 1], [1, 0], [1, 0]])
    queries = embedded([("a", "1"), ("a", "2"), ("c", "1"), (None, "5"), ("a", None)], [[0.0, 1]] * 5)
    values = measure_within(queries, gallery, [R1], COSINE).values[R1].tolist()
    assert values[0] == 1 and all(math.isnan(value) for value in values[1:])


def test_every_copy_of_the_picture_is_relevant() -> None:
    gallery = embedded([("a", "1"), ("a", "2"), ("a", "1")], [[0, 1], [0.6, 0.8], [1, 0]])
    found = measure_within(embedded([("a", "1")], [[0, 1]]), gallery, [MAP], COSINE)
    assert found.counts.tolist() == [2] and found.values[MAP].item() == pytest.approx((1 + 2 / 3) / 2)


@pytest.fixture(scope="module")
def sketchy(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_images(str(trees.sketchy(tmp_path_factory.mktemp("data") / "Sketchy", ("tx_000000000000",))), "all")


def test_an_evaluation_within_the_category_is_not_that_of_the_gallery(sketchy: ImageSet) -> None:
    method = Pixels()
    found = evaluate(method, sketchy, task=WITHIN, metrics=[R1, MAP])
    whole = evaluate(method, sketchy, task="instance", metrics=[R1, MAP])
    assert (found.task, found.protocol, found.gallery) == (WITHIN, PROTOCOL, ("photo", 4))
    (inside,), (all_photos,) = found.kinds, whole.kinds
    assert inside.n == all_photos.n == 4 and inside.unanswerable == all_photos.unanswerable == 1
    assert (inside.ranks <= all_photos.ranks).all() and inside.ranks.max() < 2 and inside.chance is None
    assert inside.values["R@1"].value == 1, "a sketch has the pixels of its photo"


def test_data_without_instances_or_categories_is_refused(sketchy: ImageSet, tmp_path: Path) -> None:
    bare = replace(sketchy, records=tuple(replace(record, instance=None) for record in sketchy.records))
    with pytest.raises(ValueError, match="images must have instances for task 'instance-in-category'"):
        evaluate(Pixels(), bare, task=WITHIN)
    flat = open_images(str(trees.matching(tmp_path / "pairs")), "all")
    with pytest.raises(ValueError, match="images must have categories for task 'instance-in-category'"):
        evaluate(Pixels(), flat, task=WITHIN)
    with pytest.raises(ValueError, match="task must be 'instance' for protocol 'batch24'"):
        evaluate(Pixels(), sketchy, task=WITHIN, protocol="batch24")
