"""The losses of ACNet: adversarial, and those of an embedding against the categories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.methods.acnet.acnet_config import ACNetConfig

_INSTALL = "pip install 'hystar-fast[train]'"


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def adversarial_loss(logits: Tensor, *, is_real: bool, gan: str) -> Tensor:
    """Return how far a discriminator's scores are from "real" or "not real", the mean over pictures and patches.

    ``"lsgan"``: (D - 1)² or D²; ``"vanilla"``: -log σ(D) or -log(1 - σ(D)), so that a generator that calls it with
    ``is_real=True`` minimises -log D(G(s)) instead of Eq. 1's log(1 - D(G(s))), whose gradient vanishes at first.

    Args:
        logits: [B, 1, h, w], without a sigmoid.
        is_real: what they should say.
        gan: "lsgan" or "vanilla".

    Example:
        >>> half = torch.full((1, 1, 2, 2), 0.5)
        >>> adversarial_loss(half, is_real=True, gan="lsgan")
        tensor(0.2500)
    """
    wanted = torch.full_like(logits, float(is_real))
    return F.mse_loss(logits, wanted) if gan == "lsgan" else F.binary_cross_entropy_with_logits(logits, wanted)


class NormSoftmax(nn.Module):
    """L(x, y) = -log softmax_z(x · p̂_z / t)[y], the mean over the batch, with unit x and unit proxies p̂ (Eq. 3).

    Args:
        categories: C.
        width: d of the embeddings.
        temperature: t.
        seed: of the proxies, N(0, 1).

    Attributes:
        proxies: [C, d], one a category, shared by every kind of input.

    Source: Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning (BMVC 2019); ACNet, Eq. 3.
    """

    def __init__(self, categories: int, width: int, temperature: float = 0.05, *, seed: int = 0) -> None:
        super().__init__()
        self.temperature = temperature
        generator = torch.Generator().manual_seed(seed)
        self.proxies = nn.Parameter(torch.randn(categories, width, generator=generator, device="cpu"))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings [B, d], of any length, with labels [B]."""
        cosines = F.normalize(embeddings, dim=-1) @ F.normalize(self.proxies, dim=-1).mT
        return F.cross_entropy(cosines / self.temperature, labels)


class CrossEntropy(nn.Module):
    """Softmax cross-entropy of a linear layer with a bias on the embedding, which is not normalised (Table VIII)."""

    def __init__(self, categories: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, categories)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(embeddings), labels)


def create_embedding_loss(settings: ACNetConfig, categories: int, seed: int) -> nn.Module:
    """Build the retrieval loss of (embeddings [B, d], labels [B]) with its parameters.

    Raises:
        ModuleNotFoundError: a loss of pytorch-metric-learning, which is not installed.
    """
    width = settings.embedding
    if settings.loss == "normsoftmax":
        return NormSoftmax(categories, width, settings.temperature, seed=seed)
    if settings.loss == "cross_entropy":
        return CrossEntropy(categories, width)
    try:
        from pytorch_metric_learning import losses
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'acnet.loss = "{settings.loss}" needs pytorch-metric-learning: {_INSTALL}'
        ) from error
    made: Any
    if settings.loss == "proxy_anchor":
        made = losses.ProxyAnchorLoss(categories, width)
    else:
        made = losses.TripletMarginLoss() if settings.loss == "triplet" else losses.MarginLoss()
    return made
