"""Rankings by another similarity than cosine against a full matrix; cosine is the default and unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hystar_fast.cli.eval_codes import CodeSettings, fit_codes
from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods.device import on_device
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.similarity import COSINE, Cosine
from hystar_fast.retrieval.answers import first_answers, query_vector
from hystar_fast.retrieval.batch24 import batch24_ranks
from hystar_fast.retrieval.definitions import Metric, measure
from hystar_fast.retrieval.embed import embed_records, embed_texts
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.joint import joint_ranks
from hystar_fast.retrieval.metrics import target_ranks
from hystar_fast.retrieval.relevant_ranks import relevant_ranks
from hystar_fast.retrieval.zero_shot import number_labels
from tests.support.distances import Colours, NegativeDistance

METRICS = [Metric.parse(name) for name in ("mAP@all", "R@1", "Prec@5:gallery")]


def points(n: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix(queries: Tensor, gallery: Tensor) -> Tensor:
    return -torch.cdist(queries, gallery).square()


@pytest.mark.parametrize("block", [3, 4096])
def test_target_ranks_are_those_of_the_full_matrix(block):
    queries, gallery, targets = points(20), points(50, 1), torch.arange(20)
    scores = matrix(queries, gallery)
    expected = (scores > scores[torch.arange(20), targets][:, None] + 1e-9).sum(1)
    found = target_ranks(queries, gallery, targets, block=block, similarity=NegativeDistance())
    assert torch.equal(found, expected)
    assert not torch.equal(found, target_ranks(queries, gallery, targets))


@pytest.mark.parametrize("block", [4, 4096])
def test_metrics_and_relevant_ranks_are_those_of_the_full_matrix(block):
    queries, gallery = points(12), points(40, 1)
    labels, items = torch.arange(12) % 4, torch.arange(40) % 5
    order = matrix(queries, gallery).argsort(dim=1, descending=True)
    similarity = NegativeDistance()
    ranks, counts = next(relevant_ranks(queries, gallery, labels, items, block=block, similarity=similarity))
    assert similarity.prepared == 2, "queries and gallery are prepared once"
    for row in range(12):
        wanted = [place for place, i in enumerate(order[row], start=1) if items[i] == labels[row]]
        assert ranks[row].tolist() == wanted and counts[row] == len(wanted)
    found = measure(queries, gallery, labels, items, METRICS, block=block, query_block=5, similarity=similarity)
    for metric in METRICS:
        assert torch.equal(found.values[metric], metric.values(ranks, counts, 40))


@pytest.mark.parametrize("combine", ["similarity", "softmax"])
def test_joint_ranks_are_those_of_the_full_matrices(combine):
    pictures, words, gallery, targets = points(9), points(9, 1), points(30, 2), torch.arange(9)
    parts = [matrix(pictures, gallery), matrix(words, gallery)]
    if combine == "softmax":
        parts = [part - (100 * part).logsumexp(1, keepdim=True) / 100 for part in parts]
    scores = torch.maximum(*parts)
    expected = (scores > scores[torch.arange(9), targets][:, None] + 1e-9).sum(1)
    found = joint_ranks(pictures, words, gallery, targets, combine=combine, similarity=NegativeDistance())
    assert torch.equal(found, expected)


def test_batches_are_ranked_by_it_too():
    queries, gallery, targets = points(24), points(30, 1), torch.arange(24)
    scores = matrix(queries, gallery[:24])
    expected = (scores > scores.diagonal()[:, None] + 1e-9).sum(1)
    assert torch.equal(batch24_ranks(queries, gallery, targets, similarity=NegativeDistance()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_gives_the_products_bit_for_bit(dtype):
    queries, gallery = points(7).to(dtype), points(9, 1).to(dtype)
    assert torch.equal(COSINE.scores(COSINE.prepare(queries), COSINE.prepare(gallery)), queries @ gallery.mT)
    assert torch.equal(COSINE.paired(queries, gallery[:7]), (queries * gallery[:7]).sum(-1))
    assert COSINE.prepare(queries) is queries
    assert Cosine().is_cosine and not NegativeDistance().is_cosine and Pixels().similarity is COSINE


def test_pairs_are_the_diagonal_of_the_scores():
    similarity = NegativeDistance()
    queries, gallery = similarity.prepare(points(5)), similarity.prepare(points(5, 1))
    assert torch.allclose(similarity.paired(queries, gallery), similarity.scores(queries, gallery).diagonal())
    assert len(similarity.paired(queries[:0], gallery[:0])) == 0


@pytest.mark.parametrize("task", ["instance", "category"])
def test_an_evaluation_ranks_by_the_similarity_of_the_method(task):
    images = load_emoji("test", ("sketch",)).select(limit=40)
    method = Colours()
    found = {kind.kind: kind for kind in evaluate(on_device(method, torch.device("cpu")), images, task=task).kinds}
    gallery = embed_records(method, images, images.gallery, [])
    queries = embed_records(method, images, images.of_style("sketch"), [])
    labels = number_labels([getattr(record, task) for record in (*queries.records, *gallery.records)])
    wanted, items = labels[: len(queries.records)], labels[len(queries.records) :]
    metric = Metric.parse("R@5")
    by_distance, by_cosine = (
        measure(queries.vectors, gallery.vectors, wanted, items, [metric], similarity=similarity).first - 1
        for similarity in (NegativeDistance(), COSINE)
    )
    assert torch.equal(found["sketch"].ranks, by_distance) and not torch.equal(by_distance, by_cosine)
    if task == "instance":
        words = embed_texts(method, [str(record.caption) for record in gallery.records])
        targets = torch.arange(len(gallery.records))
        expected = target_ranks(words, gallery.vectors, targets, similarity=NegativeDistance())
        assert torch.equal(found["text"].ranks, expected)


def test_answers_to_look_at_are_in_the_order_of_the_similarity():
    images, method = load_emoji("test", ("sketch",)).select(limit=12), Colours()
    gallery = embed_records(method, images, images.gallery, [])
    query = images.of_style("sketch")[3]
    vector = query_vector(method, images, query)
    answers = first_answers(gallery, images, query, vector, 12, similarity=method.similarity)
    order = matrix(vector[None].double(), gallery.vectors.double())[0].argsort(descending=True)
    assert [answer.caption for answer in answers] == [gallery.records[i].caption for i in order]


def test_classes_by_their_names_and_codes_are_refused():
    images = load_emoji("test", ("sketch",)).select(limit=4)
    with pytest.raises(ValueError, match="task must be 'instance' or 'category' for 'colours', whose similarity 'neg"):
        evaluate(Colours(), images, task="classify")
    with pytest.raises(ValueError, match="bits must be left out for 'colours', whose similarity 'negative_distance'"):
        fit_codes(CodeSettings(2), Colours(), None, None)
