"""WCCN: its closed form, its limits, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.methods.tki.whitening_head import WhiteningHead, within_class_whitening


def vectors(P: int = 6, C: int = 5, D: int = 4) -> Tensor:
    made = torch.randn(P, C, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.normalize(made * torch.tensor([3.0, 1.0, 1.0, 0.2]), dim=-1)


@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_it_is_the_inverse_root_of_the_covariance_about_class_means(rho: float) -> None:
    x = vectors()
    covariance = sum(
        torch.outer(x[p, i] - x[:, i].mean(0), x[p, i] - x[:, i].mean(0)) for p in range(6) for i in range(5)
    ) / (6 * 5)
    ridge = rho * covariance.trace() / 4
    found = within_class_whitening(x, rho)
    torch.testing.assert_close(found @ found, ridge * (covariance + ridge * torch.eye(4)).inverse())
    torch.testing.assert_close(found, found.mT)
    values = torch.linalg.eigvalsh(found)
    assert values.min() > 0 and values.max() <= 1 + 1e-12


def test_much_shrinkage_is_the_identity_and_directions_of_style_are_shrunk() -> None:
    torch.testing.assert_close(within_class_whitening(vectors(), 1e9), torch.eye(4, dtype=torch.float64))
    shrunk = within_class_whitening(vectors(), 0.1)
    assert shrunk[0, 0] < 0.5 * shrunk[3, 3], "styles differ most along the first axis"


def test_the_head_is_the_identity_until_it_is_fitted() -> None:
    x = vectors().float()
    head = WhiteningHead(4, rho=1.0)
    torch.testing.assert_close(head(x * 7), x)
    head.fit(x)
    torch.testing.assert_close(head(x * 7), F.normalize(x @ within_class_whitening(x, 1.0), dim=-1))
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_equal_styles_are_refused() -> None:
    with pytest.raises(ValueError, match="vectors must differ between the styles of a class, got equal ones"):
        within_class_whitening(torch.ones(3, 2, 4), 1.0)
