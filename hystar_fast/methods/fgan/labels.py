"""Label distributions of FGAN: the pooled regions through a variational bottleneck to probabilities of labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hystar_fast.methods.fgan.regions import mean_of_regions

BOTTLENECKS = ("vae", "linear")
RECONSTRUCTED = ("latent", "labels")


class LabelOutput(NamedTuple):
    """Output of a `LabelHead`.

    Attributes:
        log_labels: log g [B, C].
        pooled: r [B, d], which the decoder reconstructs.
        mean, log_variance: of the latent z [B, d]; None without a variational bottleneck.
    """

    log_labels: Tensor
    pooled: Tensor
    mean: Tensor | None
    log_variance: Tensor | None


class LabelHead(nn.Module):
    """Distribution over labels g = softmax(W mean) of the mean of an item's regions (Eq. 10, 11).

    g depends on the mean of the latent alone, so it is deterministic in training too. The decoder reconstructs the
    pooled regions from a sample of the latent, `reconstruct`.

    Args:
        width: d of the regions, of the hidden layers and of the latent.
        labels: C.
        pool_projection: a linear layer after the mean over regions.
        bottleneck: "vae", or "linear": one linear layer from the pooled regions to the labels, no decoder (Table 4).
        reconstruct: the input of the decoder: "latent", or "labels": g, as the paper writes (Eq. 22).

    Raises:
        ValueError: an option is unknown.

    Source: Ge et al. 2025, sections 4.2.3 and 4.4.
    """

    def __init__(
        self,
        width: int,
        labels: int,
        *,
        pool_projection: bool = True,
        bottleneck: str = "vae",
        reconstruct: str = "latent",
    ) -> None:
        super().__init__()
        if bottleneck not in BOTTLENECKS:
            raise ValueError(f"bottleneck must be one of {BOTTLENECKS}, got {bottleneck!r}")
        if reconstruct not in RECONSTRUCTED:
            raise ValueError(f"reconstruct must be one of {RECONSTRUCTED}, got {reconstruct!r}")
        self.decodes_labels = reconstruct == "labels"
        self.project = nn.Linear(width, width) if pool_projection else nn.Identity()
        self.encoder: nn.Module | None = None
        self.decoder: nn.Module | None = None
        if bottleneck == "vae":
            self.encoder = _two_layers(width, width, 2 * width)
            self.decoder = _two_layers(labels if self.decodes_labels else width, width, width)
        self.to_labels = nn.Linear(width, labels)

    def forward(self, regions: Tensor, padding: Tensor | None = None) -> LabelOutput:
        """Compute the labels of regions [B, N, d]; padding [B, N] is True where there is no region."""
        pooled = self.project(mean_of_regions(regions, padding))
        mean, log_variance = self.encoder(pooled).chunk(2, dim=-1) if self.encoder is not None else (None, None)
        logits = self.to_labels(pooled if mean is None else mean)
        precise = torch.promote_types(logits.dtype, torch.float32)
        return LabelOutput(logits.log_softmax(-1, dtype=precise), pooled, mean, log_variance)

    def reconstruct(self, output: LabelOutput, noise: Tensor) -> Tensor:
        """Return the decoder's [B, d] from ``mean + exp(log_variance / 2) noise``, or from g.

        Raises:
            TypeError: the bottleneck is linear, which has no decoder.
        """
        if self.decoder is None or output.mean is None or output.log_variance is None:
            raise TypeError('bottleneck must be "vae" to reconstruct, got "linear"')
        if self.decodes_labels:
            return self.decoder(output.log_labels.exp().to(output.pooled.dtype))
        return self.decoder(output.mean + (output.log_variance / 2).exp() * noise.to(output.mean.dtype))


def _two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.01), nn.Linear(hidden, out))
