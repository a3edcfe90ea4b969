"""Losses of TKI: closed forms, rows against the whole matrix, invariance, gradients and memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from hystar_fast.methods.similarity import COSINE
from hystar_fast.methods.tki.aggregation import aggregation_floor, aggregation_loss
from hystar_fast.methods.tki.ball_similarity import SIMILARITIES, create_similarity
from hystar_fast.methods.tki.expansion import category_loss, diversity_loss, off_diagonal
from hystar_fast.nn.hyperbolic import distance, exp0

ROOT = Path(__file__).resolve().parents[3]


def units(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(made, dim=-1)


def in_ball(name: str, vectors: Tensor) -> Tensor:
    return exp0(vectors, 0.8) if name == "poincare" else vectors


def dense(z: Tensor, tau: float, name: str, with_self: bool, positives: str) -> Tensor:
    """Compute Eq. 6 as it is printed, pair by pair."""
    P, C, _ = z.shape

    def score(a: Tensor, b: Tensor) -> Tensor:
        return -distance(a, b, 0.8) if name == "poincare" else a @ b

    total = z.new_zeros(())
    for p in range(P):
        for i in range(C):
            below = sum(
                math.exp(score(z[p, i], z[q, j]).item() / tau)
                for q in range(P)
                for j in range(C)
                if with_self or (q, j) != (p, i)
            )
            above = [score(z[p, i], z[q, i]).item() / tau for q in range(P) if q != p]
            inside = math.log(sum(map(math.exp, above)))
            total = total + math.log(below) - (inside if positives == "inside" else sum(above) / len(above))
    return total / (P * C)


def test_diversity_of_equal_and_of_orthogonal_styles() -> None:
    equal = F.normalize(torch.ones(4, 6), dim=-1)
    assert diversity_loss(equal, 10, 0.5).item() == pytest.approx(math.log1p(math.exp(5)), rel=1e-6)
    assert diversity_loss(torch.eye(4), 10, 0.5).item() == pytest.approx(math.log1p(math.exp(-5)), rel=1e-5)
    assert diversity_loss(equal, 1000, 0.5).item() == pytest.approx(500.0), "the printed form overflows"


def test_the_gradient_of_diversity_is_the_logistic_function() -> None:
    cosines = (units(5, 4) @ units(5, 4).mT).requires_grad_()
    value = F.softplus(10 * (off_diagonal(cosines) - 0.5)).mean()
    (gradient,) = torch.autograd.grad(value, cosines)
    expected = 10 * torch.sigmoid(10 * (cosines - 0.5)) / 20
    torch.testing.assert_close(gradient, expected.detach().fill_diagonal_(0))
    assert torch.equal(value, diversity_loss(units(5, 4), 10, 0.5))


def test_category_loss_of_orthonormal_and_of_equal_classes() -> None:
    unit, labels = torch.eye(7), torch.arange(7)
    found = category_loss(unit.expand(3, 7, 7), unit, labels, 0.1)
    assert found.item() == pytest.approx(math.log1p(6 * math.exp(-10)), abs=1e-7)
    equal = F.normalize(torch.ones(7, 7), dim=-1)
    assert category_loss(equal.expand(3, 7, 7), equal, labels, 0.1).item() == pytest.approx(math.log(7), rel=1e-6)


def test_category_loss_counts_every_prototype_where_a_batch_has_some_classes() -> None:
    styled, prototypes = units(3, 6, 5), units(6, 5, seed=1)
    rows = torch.tensor([4, 1])
    scores = styled[:, rows] @ prototypes.mT / 0.1
    truth = -(scores.log_softmax(-1)[:, torch.arange(2), rows]).mean()
    torch.testing.assert_close(category_loss(styled[:, rows], prototypes, rows, 0.1), truth)


def test_the_two_closed_forms_of_eq_6() -> None:
    point = F.normalize(torch.ones(20, 7, 8), dim=-1)
    assert aggregation_loss(point, 0.1).item() == pytest.approx(1.9972, abs=5e-5)
    classes = torch.eye(7).expand(20, 7, 7)
    floor = aggregation_floor(20)
    assert floor == pytest.approx(0.0513, abs=5e-5)
    assert aggregation_loss(classes, 0.1).item() == pytest.approx(floor + math.log1p(6 * math.exp(-10)), abs=1e-6)
    without = aggregation_loss(classes, 0.1, self_in_denominator=False)
    assert without.item() == pytest.approx(math.log1p(20 / 19 * 6 * math.exp(-10)), abs=1e-6)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("with_self", [True, False])
@pytest.mark.parametrize("positives", ["inside", "outside"])
def test_rows_give_the_whole_loss(name: str, with_self: bool, positives: str) -> None:
    z = in_ball(name, units(3, 4, 5))
    options = {
        "similarity": create_similarity(name, 0.8),
        "self_in_denominator": with_self,
        "positives": positives,
    }
    truth = dense(z, 0.3, name, with_self, positives).item()
    found = {rows: aggregation_loss(z, 0.3, rows=rows, **options).item() for rows in (1, 5, 12, 100)}
    assert all(value == pytest.approx(truth, abs=1e-6) for value in found.values()), (found, truth)
    gradients = []
    for rows in (5, 100):
        leaf = z.clone().requires_grad_()
        aggregation_loss(leaf, 0.3, rows=rows, **options).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


def test_words_and_classes_have_no_order() -> None:
    z = units(4, 5, 6)
    whole = aggregation_loss(z, 0.1)
    torch.testing.assert_close(aggregation_loss(z[torch.randperm(4)], 0.1), whole)
    torch.testing.assert_close(aggregation_loss(z[:, torch.randperm(5)], 0.1), whole)
    torch.testing.assert_close(diversity_loss(z[torch.randperm(4), 0], 10, 0.5), diversity_loss(z[:, 0], 10, 0.5))


def test_gradcheck_of_the_three_losses() -> None:
    styled, prototypes, labels = units(3, 4, 5).requires_grad_(), units(4, 5, seed=2), torch.arange(4)
    assert gradcheck(lambda z: category_loss(z, prototypes, labels, 0.2), (styled,))
    assert gradcheck(lambda z: diversity_loss(z, 10, 0.5), (units(4, 5).requires_grad_(),))
    for name in SIMILARITIES:
        z = in_ball(name, units(3, 2, 4)).detach().requires_grad_()
        similarity = create_similarity(name, 0.8)
        assert gradcheck(lambda z, s=similarity: aggregation_loss(z, 0.5, similarity=s, rows=4), (z,))


def test_the_ball_similarity_is_the_distance() -> None:
    x, y = exp0(units(6, 4), 0.8), exp0(units(5, 4, seed=1), 0.8)
    similarity = create_similarity("poincare", 0.8)
    found = similarity.scores(similarity.prepare(x), similarity.prepare(y))
    torch.testing.assert_close(found, -distance(x[:, None], y, 0.8), rtol=1e-7, atol=1e-9)
    assert similarity.name == "poincare-0.8" and create_similarity("cosine", 1.0) is COSINE
    dot = create_similarity("dot", 1.0)
    assert torch.equal(dot.scores(2 * x, y), 2 * x @ y.mT) and dot.name == "dot"
    same = similarity.scores(similarity.prepare(x), similarity.prepare(x)).diagonal()
    assert same.abs().max() < 1e-6


MEMORY = """
import torch
from hystar_fast.methods.tki.aggregation import aggregation_loss
from tests.support.memory import peak_memory
z = torch.nn.functional.normalize(torch.randn(20, 345, 512), dim=-1).requires_grad_()
aggregation_loss(z[:, :2], 0.1).backward()
before = peak_memory()
aggregation_loss(z, 0.1).backward()
print((peak_memory() - before) / 2**20)
"""


def test_the_loss_of_6900_prompts_fits_into_400_megabytes() -> None:
    # what is freed goes back to the system: without this a heap in pieces adds 0 to 250 MB at random
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 50 < float(done.stdout) < 200, "z and its gradient alone are 27 MB, all pairs at once 363 MB"


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="positives must be one of inside, outside, got 'both'"):
        aggregation_loss(units(2, 2, 3), 0.1, positives="both")
    with pytest.raises(ValueError, match=r"z must have at least 2 styles, got shape \[1, 2, 3\]"):
        aggregation_loss(units(1, 2, 3), 0.1)
    with pytest.raises(ValueError, match="similarity must be one of cosine, dot, poincare, got 'l2'"):
        create_similarity("l2", 1.0)
