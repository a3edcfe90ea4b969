"""Queries go through `encode_query` and gallery pictures through `encode_image`, wherever a method is used."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods.device import on_device
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.answers import query_vector
from hystar_fast.retrieval.definitions import Metric, measure
from hystar_fast.retrieval.embed import Embedded, embed_images, embed_records
from hystar_fast.retrieval.evaluate import evaluate
from tests.support.turned_queries import TurnedQueries


def drawings(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_queries_are_encoded_as_the_gallery_unless_a_method_says_otherwise():
    images = drawings(3)
    assert torch.equal(Pixels().encode_query(images), Pixels().encode_image(images))
    assert torch.equal(Pixels().encode(images, "query"), Pixels().encode(images, "gallery"))


def test_pictures_are_embedded_by_their_role():
    method, images = TurnedQueries(), drawings(5)
    gallery, queries = embed_images(method, images), embed_images(method, images, role="query", batch_size=2)
    assert torch.allclose(queries.flip(1), gallery)
    assert method.calls == [("image", 5, False), ("query", 2, False), ("query", 2, False), ("query", 1, False)]


@pytest.mark.parametrize("task", ["instance", "category"])
def test_an_evaluation_ranks_turned_queries_among_plain_gallery_pictures(task):
    method, images = TurnedQueries(), load_emoji("test", ("sketch",)).select(limit=40)
    metric = Metric.parse("mAP@all")
    embedded: dict[str, Embedded] = {}
    found = evaluate(method, images, task=task, metrics=[metric], kinds=["sketch"], embedded=embedded)
    gallery = embed_records(TurnedQueries(), images, images.gallery, []).vectors
    queries = embed_records(TurnedQueries(), images, images.of_style("sketch"), []).vectors.flip(1)
    assert torch.allclose(embedded["noto"].vectors, gallery)
    assert torch.allclose(embedded["sketch"].vectors, queries)
    names = [getattr(record, task) for record in (*images.gallery, *images.of_style("sketch"))]
    numbers = torch.tensor([sorted(set(names)).index(name) for name in names])
    labels = numbers[len(gallery) :], numbers[: len(gallery)]
    values = measure(queries, gallery, *labels, [metric]).interval(metric)
    plain = measure(queries.flip(1), gallery, *labels, [metric]).interval(metric)
    assert found.kinds[0].values["mAP@all"] == values != plain


def test_classification_encodes_the_gallery_style_as_gallery_and_the_others_as_queries():
    method, images = TurnedQueries(), load_emoji("test", ("sketch",)).select(limit=10)
    evaluate(method, images, task="classify")
    assert {name: rows for name, rows, _ in method.calls} == {"image": 10, "query": 10}


def test_a_single_query_of_a_picture_of_answers_is_a_query():
    method, images = TurnedQueries(), load_emoji("test", ("sketch",)).select(limit=4)
    query_vector(method, images, images.of_style("sketch")[0])
    assert method.calls == [("query", 1, False)]


def test_a_method_on_a_device_keeps_its_queries_apart_and_their_styles():
    method, images = TurnedQueries(), drawings(3)
    method.modules = (torch.nn.Identity(),)
    style = method.style(images.flip(0))
    moved = on_device(method, torch.device("cpu"))
    assert torch.equal(moved.encode_query(images, style), method.encode_query(images, style))
    assert torch.equal(moved.encode_query(images), method.encode_query(images))
    assert not torch.allclose(moved.encode_query(images, style), moved.encode_query(images))
