"""A head of TKI in closed form: within-class covariance normalisation (WCCN) of prompts in their styles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def within_class_whitening(vectors: Tensor, rho: float) -> Tensor:
    """Return the matrix that shrinks the directions in which the styles of one class differ.

    W = (S + ρ tr(S)/D I)^(-1/2), times the square root of ρ tr(S)/D, so that it is the identity where S is 0. S is the
    covariance of the vectors about the means of their classes.

    Args:
        vectors: [P, C, D], C classes in P styles.
        rho: ρ, above 0; the larger, the nearer to the identity.

    Returns:
        [D, D], symmetric, with eigenvalues above 0 and at most 1.

    Raises:
        ValueError: the styles of no class differ.

    Source: Hatch, Kajarekar, Stolcke: Within-Class Covariance Normalization (Interspeech 2006), with shrinkage.

    >>> styles = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])  # S = diag(0, 1)
    >>> within_class_whitening(styles, rho=2 / 3).round(decimals=4)
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """
    centred = (vectors - vectors.mean(0)).flatten(0, 1).double()
    covariance = centred.mT @ centred / len(centred)
    ridge = rho * covariance.trace() / covariance.shape[0]
    if not ridge > 0:
        raise ValueError("vectors must differ between the styles of a class, got equal ones")
    values, directions = torch.linalg.eigh(covariance / ridge)
    return ((directions * (1 + values.clamp(min=0)).rsqrt()) @ directions.mT).to(vectors.dtype)


class WhiteningHead(nn.Module):
    """h(x) = W x / ‖W x‖ with the matrix of `within_class_whitening`; before `fit`, W is the identity.

    Args:
        width: D of the vectors and of the result.
        rho: ρ of the whitening.
    """

    def __init__(self, width: int, rho: float) -> None:
        super().__init__()
        self.rho = rho
        self.whitening = nn.Parameter(torch.eye(width), requires_grad=False)

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Set W to that of unit vectors [P, C, D]."""
        self.whitening.copy_(within_class_whitening(vectors, self.rho))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return unit vectors [..., D] of vectors [..., D] of any norm."""
        entered = F.normalize(vectors.to(self.whitening.dtype), dim=-1)
        return F.normalize(entered @ self.whitening, dim=-1)
