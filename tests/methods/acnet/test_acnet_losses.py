"""The losses of ACNet: closed forms, the library's NormSoftmax, gradients in float64."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from pytorch_metric_learning.losses import NormalizedSoftmaxLoss
from torch.nn import functional as F

from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_losses import NormSoftmax, adversarial_loss, create_embedding_loss
from tests.support.acnet_cases import SMALL


def random_case(categories: int = 7, width: int = 5, count: int = 9) -> tuple[NormSoftmax, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return (
        NormSoftmax(categories, width, 0.05).double(),
        torch.randn(count, width, dtype=torch.float64, requires_grad=True),
        torch.randint(categories, (count,)),
    )


def test_norm_softmax_is_that_of_the_library() -> None:
    criterion, x, labels = random_case()
    theirs = NormalizedSoftmaxLoss(7, 5, temperature=0.05).double()
    shape = theirs.W.shape
    theirs.W.data = criterion.proxies.detach().clone() if shape == (7, 5) else criterion.proxies.detach().T.clone()
    ours, expected = criterion(x, labels), theirs(x, labels)
    assert abs(float((ours - expected).detach())) < 1e-6
    (mine,), (other,) = torch.autograd.grad(ours, x), torch.autograd.grad(expected, x)
    assert torch.allclose(mine, other, atol=1e-6)


def test_closed_forms_of_norm_softmax() -> None:
    criterion, x, labels = random_case()
    with torch.no_grad():
        criterion.proxies.copy_(torch.ones(7, 5))
        assert torch.allclose(criterion(x, labels), torch.tensor(math.log(7), dtype=torch.float64))
    perfect = NormSoftmax(5, 5, 0.05).double()
    with torch.no_grad():
        perfect.proxies.copy_(torch.eye(5))
    found = perfect(torch.eye(5, dtype=torch.float64), torch.arange(5))
    assert math.isclose(float(found.detach()), math.log1p(4 * math.exp(-20)), rel_tol=1e-6)


def test_norm_softmax_does_not_change_with_lengths() -> None:
    criterion, x, labels = random_case()
    before = criterion(x, labels)
    with torch.no_grad():
        criterion.proxies.mul_(torch.rand(7, 1).double() + 0.5)
    assert torch.allclose(criterion(3 * x, labels), before, rtol=1e-10)


def test_gradients_of_norm_softmax() -> None:
    criterion, x, labels = random_case()
    proxies = criterion.proxies.detach().clone().requires_grad_()

    def loss(x: torch.Tensor, proxies: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(criterion, {"proxies": proxies}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x, proxies))
    (found,) = torch.autograd.grad(loss(x, proxies), proxies)
    unit, directions = F.normalize(x, dim=-1), F.normalize(proxies, dim=-1)
    shares = (unit @ directions.T / 0.05).softmax(-1) - F.one_hot(labels, 7)
    lengths = proxies.norm(dim=-1)
    for z in range(7):
        across = torch.eye(5, dtype=torch.float64) - torch.outer(directions[z], directions[z])
        expected = (shares[:, z, None] * (unit @ across)).mean(0) / (0.05 * lengths[z])
        assert torch.allclose(found[z], expected)


def test_adversarial_losses_at_known_scores() -> None:
    half, zero = torch.full((2, 1, 3, 3), 0.5), torch.zeros(2, 1, 3, 3)
    for is_real in (True, False):
        assert float(adversarial_loss(half, is_real=is_real, gan="lsgan")) == 0.25
        found = float(adversarial_loss(zero, is_real=is_real, gan="vanilla"))
        assert math.isclose(found, math.log(2), rel_tol=1e-6)
    assert float(adversarial_loss(zero, is_real=False, gan="lsgan")) == 0.0
    assert float(adversarial_loss(zero + 40, is_real=True, gan="vanilla")) < 1e-12


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("normsoftmax", 8 * 16), ("cross_entropy", 8 * 16 + 8), ("proxy_anchor", 8 * 16), ("triplet", 0), ("margin", 0)],
)
def test_every_loss_has_its_parameters_and_a_gradient(name: str, parameters: int) -> None:
    torch.manual_seed(0)
    criterion = create_embedding_loss(ACNetConfig(**SMALL | {"loss": name}), 8, 0)
    assert sum(p.numel() for p in criterion.parameters()) == parameters
    x = torch.randn(16, 16, requires_grad=True)
    loss = criterion(x, torch.arange(16) % 8)
    loss.backward()
    assert loss.ndim == 0 and bool(x.grad.abs().sum() > 0)


def test_a_loss_of_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"acnet\.loss = \"margin\" needs pytorch-metric-learning: pip install"
    ):
        create_embedding_loss(ACNetConfig(**SMALL | {"loss": "margin"}), 8, 0)
    assert isinstance(create_embedding_loss(ACNetConfig(**SMALL), 8, 0), NormSoftmax)
