"""Vectors of the modalities with their classifier, and the sum of the losses that train them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_losses import (
    classification_loss,
    clip_loss,
    orthogonality_loss,
    reconstruction_loss,
    semantic_loss,
)


class ModalityVectors(nn.Module):
    """One learned vector for each modality, of pictures first and of texts last, and a linear classifier of them.

    Args:
        own: the settings of the method.
        pictures: how many styles of pictures.
        width: D of the embeddings.

    Attributes:
        vectors: m [K, D]; K is `pictures`, the unused ones, and one of texts.
        classifier: D -> K.
    """

    def __init__(self, own: MASBIRConfig, pictures: int, width: int) -> None:
        super().__init__()
        count = pictures + own.unused_modalities + 1
        self.own, self.pictures = own, pictures
        drawn = torch.randn(count, width) if own.modality_init == "normal" else torch.zeros(count, width)
        self.vectors = nn.Parameter(drawn)
        self.classifier = nn.Linear(width, count)

    @property
    def text(self) -> Tensor:
        """The vector [D] of texts."""
        return self.vectors[-1]

    @torch.no_grad()
    def start(self, pictures: Tensor, text: Tensor) -> None:
        """Set the vectors to the means of the modalities; an unused one becomes the mean of the others.

        Args:
            pictures: [styles, D].
            text: [D].
        """
        used = torch.cat([pictures, text[None]]).to(self.vectors)
        self.vectors.copy_(used.mean(0).expand_as(self.vectors))
        self.vectors[: self.pictures] = used[:-1]
        self.vectors[-1] = used[-1]

    def losses(
        self, pictures: Tensor, texts: Tensor, labels: Tensor, kinds: Tensor, tau: Tensor | float
    ) -> dict[str, Tensor]:
        """Return every term of the loss by name, with "loss", their sum by the weights of the settings.

        A term of weight 0 is computed for the log, without a gradient.

        Args:
            pictures, texts: unit vectors [B, D].
            labels: int64 [B], the number of the caption of each item.
            kinds: int64 [B], the modality of each picture.
            tau: temperature.
        """
        own, m = self.own, self.vectors
        source = m[kinds]
        terms = {
            "sem": lambda: semantic_loss(pictures, texts, source, self.text),
            "mc": lambda: classification_loss(
                pictures,
                texts,
                kinds,
                m,
                self.classifier.weight,
                self.classifier.bias,
                conversion=own.conversion,
                classify=own.classify,
            ),
            "rec": lambda: reconstruction_loss(pictures, texts, source, self.text, own.conversion),
            "ortho": lambda: orthogonality_loss(pictures, texts, m, own.ortho),
        }
        found = {"clip": clip_loss(pictures, texts, labels, tau, own.duplicates)}
        total = found["clip"]
        for name, compute in terms.items():
            weight = own.weights[name]
            with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
                found[name] = compute()
            if weight:
                total = total + weight * found[name]
        if own.divide_by_weights:
            total = total / (1 + sum(own.weights.values()))
        return {"loss": total, **found}
