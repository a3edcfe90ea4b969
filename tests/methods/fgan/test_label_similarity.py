"""The similarity of FGAN against double loops over items in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hystar_fast.methods.fgan.label_similarity import RETRIEVALS, LabelSimilarity, describe

D, C = 16, 40


def items(count, seed, sharpness=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(count, D, generator=generator, dtype=torch.float64)
    logits = sharpness * torch.randn(count, C, generator=generator, dtype=torch.float64)
    return describe(embedding.to(dtype), logits.log_softmax(-1).to(dtype))


def looped(queries, gallery, retrieval):
    """Compute a similarity for each pair by Python's loops; "labels" as the paper has it, with tanh."""
    rows = []
    for q in queries.double():
        row = []
        for g in gallery.double():
            cosine = F.cosine_similarity(q[:D], g[:D], dim=0).item()
            logs = list(zip(q[D:].tolist(), g[D:].tolist(), strict=True))
            divergence = sum(math.exp(a) * (a - b) + math.exp(b) * (b - a) for a, b in logs)
            labels = math.tanh(-divergence)
            row.append({"joint": cosine + labels, "regions": cosine, "labels": -divergence}[retrieval])
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def scores(queries, gallery, retrieval, block=None):
    similarity = LabelSimilarity(D, retrieval)
    prepared = similarity.prepare(gallery)
    blocks = prepared.split(block or len(prepared))
    return torch.cat([similarity.scores(similarity.prepare(queries), part) for part in blocks], dim=1)


@pytest.mark.parametrize("retrieval", RETRIEVALS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_scores_equal_the_double_loop(retrieval, dtype, tolerance):
    queries, gallery = items(5, 1, dtype=dtype), items(7, 2, dtype=dtype)
    found = scores(queries, gallery, retrieval)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), looped(queries, gallery, retrieval), rtol=0, atol=tolerance)


def test_a_thousand_labels_in_float32_are_within_1e_5():
    generator = torch.Generator().manual_seed(3)
    logs = (3 * torch.randn(30, 1000, generator=generator, dtype=torch.float64)).log_softmax(-1)
    rows = describe(torch.ones(30, 1), logs.float())
    similarity = LabelSimilarity(1, "labels")
    prepared = similarity.prepare(rows)
    p = logs.exp()
    truth = torch.stack([((p[i] - p) * (logs[i] - logs)).sum(-1) for i in range(30)])
    found = -similarity.scores(prepared, prepared)
    assert (found - truth).abs().max() < 2e-5 * truth.max() / 10
    assert found.min() >= 0 and found.diagonal().max() <= 1e-5


@pytest.mark.parametrize("retrieval", RETRIEVALS)
def test_scores_are_symmetric_and_within_their_bounds(retrieval):
    a, b = items(20, 4, 8.0, torch.float32), items(20, 5, 8.0, torch.float32)
    found = scores(a, b, retrieval)
    torch.testing.assert_close(found, scores(b, a, retrieval).mT, rtol=1e-6, atol=1e-5)
    low, high = {"joint": (-2.0, 1.0), "regions": (-1.0, 1.0), "labels": (-math.inf, 0.0)}[retrieval]
    assert found.min() >= low - 1e-6 and found.max() <= high + 1e-6
    own = scores(a, a, retrieval).diagonal()
    torch.testing.assert_close(own, torch.full((20,), high), rtol=0, atol=1e-5)


@pytest.mark.parametrize("retrieval", RETRIEVALS)
def test_paired_scores_are_the_diagonal(retrieval):
    similarity = LabelSimilarity(D, retrieval)
    queries, gallery = (similarity.prepare(items(9, seed)) for seed in (12, 13))
    expected = similarity.scores(queries, gallery).diagonal()
    torch.testing.assert_close(similarity.paired(queries, gallery), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize("retrieval", RETRIEVALS)
def test_the_size_of_a_block_does_not_matter(retrieval, block):
    queries, gallery = items(4, 6, dtype=torch.float32), items(50, 7, dtype=torch.float32)
    whole = scores(queries, gallery, retrieval)
    torch.testing.assert_close(scores(queries, gallery, retrieval, block), whole, rtol=1e-6, atol=2e-6)


def test_labels_order_as_tanh_does_in_float64_where_float32_saturates():
    # distances from 0 to some 15: tanh in float32 is -1 beyond 9.2
    shifts = torch.linspace(0, 12, 300, dtype=torch.float64)
    logits = torch.zeros(300, C, dtype=torch.float64)
    logits[:, 0] = shifts
    rows = describe(torch.ones(300, D), logits.log_softmax(-1).float())
    found = scores(rows[:1], rows, "labels")[0]
    exact = looped(rows[:1], rows, "labels")[0].tanh()
    assert len(found.unique()) > 290 and len(found.tanh().unique()) < len(exact.unique())
    assert found.argsort(descending=True, stable=True).tolist() == exact.argsort(descending=True, stable=True).tolist()


def test_vanishing_probabilities_are_finite():
    logs = torch.tensor([[0.0, 200.0, -200.0], [300.0, 0.0, 0.0]]).log_softmax(-1)
    rows = describe(torch.eye(2), logs)
    similarity = LabelSimilarity(2, "labels")
    found = similarity.scores(similarity.prepare(rows), similarity.prepare(rows))
    torch.testing.assert_close(found, -torch.tensor([[0.0, 500.0], [500.0, 0.0]]))


def test_the_joint_score_is_the_sum_of_the_paper():
    queries, gallery = items(6, 8), items(6, 9)
    expected = scores(queries, gallery, "regions") + scores(queries, gallery, "labels").tanh()
    torch.testing.assert_close(scores(queries, gallery, "joint"), expected, rtol=0, atol=1e-14)


def test_no_array_of_items_by_items_by_labels_is_made():
    queries, gallery = items(40, 10, dtype=torch.float32), items(60, 11, dtype=torch.float32)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    with Sizes():
        scores(queries, gallery, "joint")
    assert largest <= max(60 * (D + 2 * C + 1), 40 * 60)


def test_names_differ_and_wrong_arguments_are_named():
    assert LabelSimilarity().name == "fgan-joint-512"
    assert len({LabelSimilarity(D, retrieval).name for retrieval in RETRIEVALS}) == 3
    with pytest.raises(ValueError, match=r"retrieval must be one of .*got 'sum'"):
        LabelSimilarity(retrieval="sum")
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        LabelSimilarity(0)
    with pytest.raises(ValueError, match=r"descriptors .* more than 16 columns, got \[2, 16\]"):
        LabelSimilarity(D).prepare(torch.rand(2, D))
