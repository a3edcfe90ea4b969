"""Losses of FGAN against nested loops, closed forms and torch's own divergences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from hystar_fast.methods.fgan.fgan_losses import (
    alignment,
    classification_contrast,
    cosine_distances,
    fine_grained_contrast,
    pairwise_contrast,
    reconstruction_error,
    standard_normal_divergence,
)

CLASSES = {
    "mixed": [0, 1, 0, 2, 1, 0, 3],
    "one class": [4] * 7,
    "no two of a class": [0, 1, 2, 3, 4, 5, 6],
    "a pair alone": [9],
}


def looped(distances, classes, margin, semi_margin, anchors, triplets):
    """Compute both terms by loops over anchors, positives and the others, in Python's floats."""
    M = len(classes)
    sides = [[[distances[i][j] for j in range(M)] for i in range(M)]]
    if anchors == "both":
        sides.append([[distances[j][i] for j in range(M)] for i in range(M)])
    terms = []
    for d in sides:
        negative, semi, n_negative, n_semi = 0.0, 0.0, 0, 0
        for i in range(M):
            negatives = [d[i][j] for j in range(M) if classes[j] != classes[i]]
            semis = [d[i][j] for j in range(M) if j != i and classes[j] == classes[i]]
            if triplets == "selective":
                negatives, semis = negatives and [min(negatives)], semis and [max(semis)]
            negative += sum(max(0.0, margin + d[i][i] - other) for other in negatives)
            semi += sum(max(0.0, semi_margin + d[i][i] - other) for other in semis)
            n_negative, n_semi = n_negative + len(negatives), n_semi + len(semis)
        whole = M if triplets == "selective" else n_negative
        terms.append((negative / max(1, whole), semi / max(1, n_semi)))
    return [sum(side[t] for side in terms) / len(terms) for t in range(2)]


@pytest.mark.parametrize("triplets", ["selective", "all"])
@pytest.mark.parametrize("anchors", ["both", "image"])
@pytest.mark.parametrize("name", CLASSES)
def test_the_contrast_equals_nested_loops(name, anchors, triplets):
    classes = CLASSES[name]
    distances = 2 * torch.rand(len(classes), len(classes), dtype=torch.float64)
    distances.requires_grad_()
    options = {"margin": 0.7, "semi_margin": 0.4, "anchors": anchors, "triplets": triplets}
    found = fine_grained_contrast(distances, torch.tensor(classes), **options)
    expected = looped(distances.tolist(), classes, *options.values())
    assert [term.item() for term in found] == pytest.approx(expected, abs=1e-14)
    (gradient,) = torch.autograd.grad(sum(found), distances)
    assert gradient.isfinite().all()


def test_without_negatives_or_semi_positives_the_terms_are_zero_and_have_no_gradient():
    distances = torch.rand(5, 5, requires_grad=True)
    alone = fine_grained_contrast(distances, torch.arange(5))
    equal = fine_grained_contrast(distances, torch.zeros(5, dtype=torch.long))
    assert alone.semi_positive.item() == 0 and equal.negative.item() == 0
    (gradient,) = torch.autograd.grad(alone.semi_positive + equal.negative, distances)
    assert gradient.abs().max() == 0


def test_the_terms_are_zero_where_the_margins_hold():
    distances = torch.full((4, 4), 1.0)
    distances.fill_diagonal_(0.4)
    found = fine_grained_contrast(distances, torch.tensor([0, 0, 1, 1]), margin=0.6, semi_margin=0.6)
    assert [term.item() for term in found] == [0, 0]


def test_the_gradient_reaches_the_chosen_pairs_alone():
    distances = torch.tensor([[0.5, 0.6, 0.7], [0.9, 0.2, 0.8], [0.4, 0.3, 0.1]], requires_grad=True)
    classes = torch.tensor([0, 0, 1])
    options = {"margin": 1.0, "semi_margin": 1.0, "anchors": "image"}
    (gradient,) = torch.autograd.grad(fine_grained_contrast(distances, classes, **options).negative, distances)
    expected = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0], [0.0, -1.0, 1.0]]) / 3
    torch.testing.assert_close(gradient, expected)
    (gradient,) = torch.autograd.grad(fine_grained_contrast(distances, classes, **options).semi_positive, distances)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 2)


def test_the_farthest_semi_positive_is_pushed_and_the_nearest_is_left():
    distances = torch.tensor([[0.2, 0.3, 0.6], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]], requires_grad=True)
    found = fine_grained_contrast(distances, torch.zeros(3, dtype=torch.long), semi_margin=0.5, anchors="image")
    assert found.semi_positive.item() == pytest.approx((0.5 - 0.4 + 0.5 + 0.5) / 3)
    (gradient,) = torch.autograd.grad(found.semi_positive, distances)
    assert gradient[0].tolist() == pytest.approx([1 / 3, 0, -1 / 3])


@pytest.mark.parametrize("triplets", ["selective", "all"])
def test_both_anchors_are_symmetric_and_lengths_of_embeddings_do_not_matter(triplets):
    images, texts = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    classes = torch.tensor([0, 0, 1, 1, 1, 2])
    plain = fine_grained_contrast(cosine_distances(images, texts), classes, triplets=triplets)
    turned = fine_grained_contrast(cosine_distances(texts, images), classes, triplets=triplets)
    lengths = torch.rand(6, 1, dtype=torch.float64) + 0.1
    scaled = fine_grained_contrast(cosine_distances(images * lengths, 7 * texts), classes, triplets=triplets)
    for other in (turned, scaled):
        torch.testing.assert_close(torch.stack(other), torch.stack(plain), rtol=0, atol=1e-14)


def test_distances_are_one_minus_the_cosine_also_of_zero_and_of_half_precision():
    images, texts = torch.randn(3, 5), torch.randn(3, 5)
    expected = [[1 - F.cosine_similarity(i, t, dim=0).item() for t in texts] for i in images]
    torch.testing.assert_close(cosine_distances(images, texts), torch.tensor(expected))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(cosine_distances(images, texts), torch.tensor(expected))
    assert cosine_distances(images.bfloat16(), texts.bfloat16()).dtype == torch.float32
    assert cosine_distances(torch.zeros(1, 5), texts).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("name", CLASSES)
def test_the_pairwise_loss_equals_loops(name):
    classes = CLASSES[name]
    M = len(classes)
    d = torch.rand(M, M, dtype=torch.float64)
    pushed = [max(0.0, 0.5 - d[i, j].item()) for i in range(M) for j in range(M) if classes[i] != classes[j]]
    expected = sum(d[i, i].item() for i in range(M)) / M + sum(pushed) / max(1, len(pushed))
    assert pairwise_contrast(d, torch.tensor(classes), margin=0.5).item() == pytest.approx(expected, abs=1e-14)


def test_the_classification_loss_is_the_mean_of_both_sides():
    images, texts, classes = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([2, 0, 1, 1])
    rows = [-logits.log_softmax(-1)[i, c] for logits in (images, texts) for i, c in enumerate(classes)]
    torch.testing.assert_close(classification_contrast(images, texts, classes), torch.stack(rows).mean())


def test_alignment_is_the_sum_of_four_divergences():
    teacher = torch.randn(5, 9, dtype=torch.float64).softmax(-1)
    image, text = (torch.randn(5, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    terms = [F.kl_div(log, teacher, reduction="batchmean") for log in (image, text)]
    terms += [F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((image, text), (text, image))]
    found = alignment(teacher, image, text, factor=0.25)
    torch.testing.assert_close(found, 0.25 * sum(terms), rtol=0, atol=1e-14)
    assert found > 0


def test_alignment_is_zero_only_where_all_three_agree():
    teacher = torch.randn(4, 6, dtype=torch.float64).softmax(-1)
    log, other = teacher.log(), torch.randn(4, 6, dtype=torch.float64).log_softmax(-1)
    assert alignment(teacher, log, log).abs() < 1e-15
    assert all(alignment(*three) > 1e-3 for three in ((teacher, log, other), (teacher, other, log)))
    assert alignment(teacher, other, other) > 1e-3


def test_alignment_of_one_hot_labels_and_vanishing_probabilities_is_finite():
    teacher = F.one_hot(torch.tensor([1, 0]), 3).float()
    image = torch.tensor([[0.0, 300.0, -300.0], [0.0, 0.0, 0.0]]).log_softmax(-1).requires_grad_()
    text = torch.tensor([[1.0, 2.0, 3.0], [5.0, -200.0, 0.0]]).log_softmax(-1).requires_grad_()
    found = alignment(teacher, image, text)
    found.backward()
    assert math.isfinite(found.item()) and image.grad.isfinite().all() and text.grad.isfinite().all()


def test_both_sides_get_gradients_from_their_distance_and_the_teacher_none():
    teacher = torch.randn(3, 4).softmax(-1).requires_grad_()
    image, text = (torch.randn(3, 4).log_softmax(-1).requires_grad_() for _ in range(2))
    alignment(teacher, image, text, factor=1.0).backward()
    expected = -teacher + image.exp() * (image - text) + image.exp() - text.exp()
    torch.testing.assert_close(image.grad, expected.detach() / 3)
    assert text.grad.abs().max() > 0 and teacher.grad is None


def test_the_divergence_of_the_latent_equals_that_of_torch():
    mean, log_variance = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    truth = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.tensor(0.0).double(), 1.0))
    torch.testing.assert_close(standard_normal_divergence(mean, log_variance), truth.sum(-1).mean())
    assert standard_normal_divergence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_reconstruction_errors():
    found, target = torch.tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert reconstruction_error(found, target).item() == 25 / 4
    norm = reconstruction_error(found, target, "l2")
    norm.backward()
    assert norm.item() == 2.5 and found.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fine_grained_contrast(torch.rand(2, 3), torch.zeros(2).long()), r"distances .*\[M, M\].*\[2, 3\]"),
        (lambda: fine_grained_contrast(torch.rand(0, 0), torch.zeros(0).long()), r"M of at least 1, got \[0, 0\]"),
        (lambda: pairwise_contrast(torch.rand(2, 2), torch.zeros(3).long()), r"classes must be integers \[2\].*\[3\]"),
        (lambda: pairwise_contrast(torch.rand(2, 2), torch.zeros(2)), "classes must be integers .*float32"),
        (
            lambda: fine_grained_contrast(torch.rand(2, 2), torch.zeros(2).long(), anchors="text"),
            "anchors must be one of .*got 'text'",
        ),
        (
            lambda: fine_grained_contrast(torch.rand(2, 2), torch.zeros(2).long(), triplets="hard"),
            "triplets must be one of .*got 'hard'",
        ),
        (lambda: alignment(torch.rand(2, 3), torch.rand(2, 3), torch.rand(2, 4)), r"one shape \[M, C\], got"),
        (lambda: reconstruction_error(torch.rand(2, 3), torch.rand(2, 3), "l1"), "kind must be one of .*got 'l1'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
