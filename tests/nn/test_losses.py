"""Every loss and its gradients against a short formula, with masks and hard negatives."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hystar_fast.nn.losses import LOSSES, InfoNCELoss, MetricLearningLoss, StyleNCELoss, create_loss, loss_options
from hystar_fast.ops.style_nce import style_nce as op
from hystar_fast.ref.style_nce import style_nce as reference

N, D = 7, 5


def pairs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(N, D, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))  # type: ignore[return-value]


def cosine(query: Tensor, target: Tensor) -> Tensor:
    return torch.stack([torch.cosine_similarity(row[None], target, dim=1) for row in query])


def rows(query: Tensor, target: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return for each row the cosine of the positive and the cosines of the negatives."""
    s = cosine(query, target)
    return [(s[i, i], s[i][[j for j in range(N) if j != i and not mask[i, j]]]) for i in range(N)]


def style_nce(query: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return reference(query, target, mask=mask)


def info_nce(query: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([-torch.log(torch.exp(p / 0.07) / (torch.exp(p / 0.07) + torch.exp(n / 0.07).sum()))
                        for p, n in rows(query, target, mask)]).mean()  # fmt: skip


def info_nce_hard(query: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    losses = []
    for p, n in rows(query, target, mask):
        negative = torch.exp(n / 0.07)
        weight = negative / negative.mean()  # hardness 1; the mean of the weights is one
        losses.append(-torch.log(torch.exp(p / 0.07) / (torch.exp(p / 0.07) + (weight * negative).sum())))
    return torch.stack(losses).mean()


def triplet(query: Tensor, target: Tensor, mask: Tensor, hard: bool = False) -> Tensor:
    each = [torch.relu((n.max()[None] if hard else n) - p + 0.2) for p, n in rows(query, target, mask)]
    losses = torch.cat(each)
    return losses[losses > 0].mean()


def triplet_hard(query: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return triplet(query, target, mask, hard=True)


def circle(query: Tensor, target: Tensor, mask: Tensor, m: float = 0.4, scale: float = 80.0) -> Tensor:
    losses = []
    for p, n in rows(query, target, mask):
        alpha_p, alpha_n = torch.relu(1 + m - p).detach(), torch.relu(n + m).detach()
        positive = torch.exp(-scale * alpha_p * (p - (1 - m)))
        negative = torch.exp(scale * alpha_n * (n - m)).sum()
        losses.append(torch.log(1 + positive * negative))
    return torch.stack(losses).mean()


FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    f.__name__: f for f in (style_nce, info_nce, info_nce_hard, triplet, triplet_hard, circle)
}


def test_every_loss_has_a_formula_here() -> None:
    assert tuple(FORMULAS) == LOSSES


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_those_of_the_formula(name: str, masked: bool) -> None:
    mask = torch.zeros(N, N, dtype=torch.bool)
    if masked:
        mask[0, 3] = mask[3, 0] = mask[2, 5] = mask[5, 2] = True
    query, target = pairs()
    found = create_loss(name)(query, target, mask if masked else None)
    expected = FORMULAS[name](query, target, mask)
    assert found.shape == () and torch.isfinite(found)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    gradients = torch.autograd.grad(found, (query, target))
    for gradient, truth in zip(gradients, torch.autograd.grad(expected, (query, target)), strict=True):
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
        torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_target_gets_no_gradient(name: str) -> None:
    query, target = pairs(1)
    mask = torch.zeros(N, N, dtype=torch.bool)
    mask[:, 4] = mask[4] = True
    mask[4, 4] = False
    others = [i for i in range(N) if i != 4]
    gradient = torch.autograd.grad(create_loss(name)(query, target, mask), target)[0]
    assert torch.isfinite(gradient).all()
    if name != "circle":  # a positive without negatives has a loss there, as in pytorch-metric-learning
        torch.testing.assert_close(gradient[4], torch.zeros(D).double(), atol=1e-9, rtol=0)
    assert gradient[others].abs().sum() > 0
    moved = target.detach().clone()
    moved[4] = torch.randn(D)
    moved.requires_grad_()
    unchanged = torch.autograd.grad(create_loss(name)(query, moved, mask), moved)[0]
    torch.testing.assert_close(unchanged[others], gradient[others], atol=1e-9, rtol=1e-6)


def test_without_hardness_the_hard_form_is_info_nce_and_style_nce_with_uniform_weights() -> None:
    query, target = pairs(2)
    plain = create_loss("info_nce")(query, target)
    for hardness in (0.0, 1e-12):  # zero skips the weights
        torch.testing.assert_close(create_loss("info_nce_hard", hardness=hardness)(query, target), plain)
    uniform = create_loss("style_nce", weights="uniform", gamma=float(N - 1))(query, target)
    torch.testing.assert_close(uniform, plain, rtol=1e-6, atol=1e-9)
    assert create_loss("info_nce_hard", hardness=0.5)(query, target) > plain


def test_one_negative_has_the_weight_one_whatever_the_hardness() -> None:
    query, target = (tensor[:2] for tensor in pairs(4))
    hard, plain = (create_loss(name, hardness=3.0)(query, target) for name in ("info_nce_hard", "info_nce"))
    torch.testing.assert_close(hard, plain)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_change_a_loss(name: str) -> None:
    query, target = (tensor.detach().float().requires_grad_() for tensor in pairs(5))
    expected = create_loss(name)(query, target)
    with torch.autocast("cpu", torch.bfloat16):
        found = create_loss(name)(query, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(loss, (query, target)) for loss in (found, expected))
    for gradient, truth in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-7)


def test_low_precision_is_summed_in_float32() -> None:
    query, target = (tensor.detach().bfloat16().requires_grad_() for tensor in pairs(3))
    found = create_loss("info_nce")(query, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, create_loss("info_nce")(query.float(), target.float()))


def test_bad_names_and_options() -> None:
    with pytest.raises(ValueError, match=r"name must be one of style_nce, info_nce, .* got 'nce'"):
        create_loss("nce")
    with pytest.raises(ValueError, match="temperature must be finite and above 0, got 0"):
        InfoNCELoss(temperature=0)
    with pytest.raises(TypeError, match="hardness must be a number, got str"):
        InfoNCELoss(hardness="much")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin must be finite and at least 0, got -1"):
        MetricLearningLoss("triplet", margin=-1)
    with pytest.raises(ValueError, match="name must be 'triplet' or 'circle', got 'square'"):
        MetricLearningLoss("square", margin=0.1)
    assert isinstance(create_loss(gamma="auto"), StyleNCELoss)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("gamma", -1.0), ("lam", 0.0), ("epsilon", 0.0), ("n_iter", 0), ("weights", "mine"),
     ("plan_grad", "full"), ("reduction", "max")],
)  # fmt: skip
def test_options_of_style_nce_are_checked_at_construction(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        StyleNCELoss(**{name: value})  # type: ignore[arg-type]


def test_the_options_are_those_of_style_nce_and_of_the_other_losses() -> None:
    found = loss_options()
    own = set(inspect.signature(op).parameters) - {"query", "target", "mask", "reduction", "group"}
    assert own < set(found) and set(found) - own == {"name", "hardness", "margin", "circle_margin", "circle_scale"}
    assert found["gamma"] == (float | str, 80.0) and found["n_iter"] == (int, 50) and found["margin"] == (float, 0.2)
    created = create_loss(**{name: default for name, (_, default) in found.items()})
    pinned = {"temperature": 0.07, "gamma": 80.0, "lam": 1.0, "epsilon": 0.1, "n_iter": 50}
    pinned |= {"weights": "paper", "plan_grad": "none", "reduction": "mean"}
    assert isinstance(created, StyleNCELoss) and created.options == StyleNCELoss().options == pinned
    for wrong in ({"reduction": "none"}, {"gama": 1.0}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            create_loss("info_nce", **wrong)


@pytest.mark.parametrize("name", ["triplet", "triplet_hard", "circle"])
def test_without_the_extra_the_message_names_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pytorch-metric-learning: pip install 'hystar-fast\[train\]'"):
        create_loss(name)
