"""Vectors of the modalities for fine-grained MA-SBIR, and the sum of the losses of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.methods.ma_sbir.fine_losses import (
    fine_classification_loss,
    fine_reconstruction_loss,
    fine_semantic_loss,
    pair_clip_loss,
    total_loss,
)
from hystar_fast.methods.ma_sbir.ma_sbir_losses import clip_loss, orthogonality_loss
from hystar_fast.methods.ma_sbir.modality_vectors import ModalityVectors


class PairVectors(ModalityVectors):
    """`ModalityVectors` with the losses of a sketch, its photo and their caption."""

    def pair_losses(
        self,
        vectors: Tensor,
        shuffled: Tensor | None,
        captions: Tensor,
        instances: Tensor,
        kinds: Tensor,
        tau: Tensor | float,
    ) -> dict[str, Tensor]:
        """Return every term by name, with "loss", their sum by the weights of the settings (Eq. 13).

        A term of weight 0 is computed for the log, without a gradient; L_ps is left out without shuffled pictures.

        Args:
            vectors: unit vectors [3, B, D] of sketches, photos and captions.
            shuffled: unit vectors [2, B, D] of the shuffled sketches and photos, for L_ps (Eq. 12).
            captions, instances: int64 [B], the numbers of the caption and of the photo of each pair.
            kinds: int64 [B], the modality of each sketch; photos have 0.
            tau: temperature.
        """
        own, m = self.own, self.vectors
        modalities = torch.stack([kinds, torch.zeros_like(kinds), torch.full_like(kinds, len(m) - 1)])
        how = own.conversion, own.fine_pairs
        classifier = self.classifier.weight, self.classifier.bias
        terms = {
            "sem": lambda: fine_semantic_loss(vectors, m, modalities),
            "mc": lambda: fine_classification_loss(vectors, m, modalities, *classifier, *how),
            "rec": lambda: fine_reconstruction_loss(vectors, m, modalities, *how),
            "ortho": lambda: orthogonality_loss(vectors[0] + vectors[1], vectors[2], m, own.ortho),
        }
        img, txt = pair_clip_loss(vectors, captions, instances, tau, own.duplicates)
        found = {"clip_img": img, "clip_txt": txt}
        weights = dict(own.weights)
        if shuffled is not None:
            weights["ps"] = own.lambda_ps
            found["ps"] = clip_loss(shuffled[0], shuffled[1], instances, tau, own.duplicates)
        for name, compute in terms.items():
            with torch.set_grad_enabled(weights[name] > 0 and torch.is_grad_enabled()):
                found[name] = compute()
        total = total_loss(found, weights, own.clip_img)
        if own.divide_by_weights:
            total = total / (1 + sum(weights.values()))
        return {"loss": total, **found}
