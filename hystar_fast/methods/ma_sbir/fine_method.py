"""Fine-grained MA-SBIR: a sketch finds its own photo, by pairs with their caption and by shuffled patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_method import MASBIR
from hystar_fast.methods.ma_sbir.pair_vectors import PairVectors
from hystar_fast.methods.ma_sbir.patch_shuffle import check_grid, draw_orders, shuffle_patches
from hystar_fast.methods.step_trained import PairedBatch, StepPlan
from hystar_fast.models.backbones.image_projection import drop_image_projection
from hystar_fast.models.backbones.tower import TowerBackbone


class TextLayer(nn.Module):
    """The linear layer that takes texts to the width of pictures; its weight begins as an orthogonal matrix.

    Args:
        text_width: of the text tower.
        width: of pictures.
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.text_layer = nn.Linear(text_width, width)
        if not self.text_layer.weight.is_meta:
            nn.init.orthogonal_(self.text_layer.weight)
        nn.init.zeros_(self.text_layer.bias)

    def forward(self, texts: Tensor) -> Tensor:
        """Return unit vectors [n, width] of unit vectors [n, text_width]."""
        return F.normalize(self.text_layer(texts), dim=-1)


class FineMASBIR(MASBIR):
    """Retrieval of the photo that a sketch was drawn from.

    L = λ_ci L_clip-img + (1 - λ_ci) L_clip-txt + λ_ps L_ps + λ_sem L_sem + λ_mc L_mc + λ_rec L_rec + λ_ortho L_ortho

    of pairs of a sketch and its photo with the caption of their category (Eq. 13). L_ps compares the pictures after
    their squares have changed places, by one order for each pair, another one in each step.

    Pictures are compared as the image tower pools them, before its projection, which is removed. The text tower is
    frozen, and a linear layer takes its vectors to the width of pictures.

    Args:
        own: the settings, with ``fine``.
        backbone: a CLIP; its image tower is trained in place.
        styles: of the pictures, the gallery's first; () before `begin`.

    Raises:
        ValueError: a backbone of another kind, or a grid that does not divide its pictures.

    Source: Lyou et al. 2024, Section 3.4. How the losses of one picture and its text take three is not in the paper:
    see :mod:`hystar_fast.methods.ma_sbir.fine_losses`.
    """

    divides_batches = False
    modalities: PairVectors

    def __init__(self, own: MASBIRConfig, backbone: TowerBackbone, styles: tuple[str, ...] = ()) -> None:
        check_grid(own.shuffle_grid, backbone.image_size)
        text_width = backbone.embed_dim
        drop_image_projection(backbone)
        self.text_layer = TextLayer(text_width, backbone.embed_dim)
        super().__init__(own, backbone, styles)

    def _added(self) -> tuple[nn.Module, ...]:
        return (self.text_layer,)

    def _vectors_of(self, pictures: int) -> PairVectors:
        return PairVectors(self.own, pictures, self.model.embed_dim)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return "towers", the image tower alone, "modalities", and "text", the linear layer where a loss reads it."""
        reads_texts = self.own.trains_modalities or self.own.clip_img < 1
        return super().parameter_groups() | ({"text": [*self.text_layer.parameters()]} if reads_texts else {})

    def trained_parameters(self) -> dict[str, Tensor]:
        """Return the image tower, the linear layer of texts, the vectors of the modalities and their classifier."""
        return super().trained_parameters() | dict(self.text_layer.named_parameters())

    def state(self) -> Mapping[str, nn.Module]:
        return {**super().state(), "text": self.text_layer}

    def _backward_step(self, batch: PairedBatch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        return self.backward_pairs(batch, step)

    def backward_pairs(self, batch: PairedBatch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch of pairs and the gradients of the parameters.

        Args:
            batch: pairs of pictures.
            step: from 0; it draws the orders of the squares.

        Returns:
            The losses, and the embeddings [b, D] of the photos.

        Raises:
            TypeError: a batch of texts, or without pictures.
        """
        if not isinstance(batch.queries, Tensor) or batch.gallery is None:
            raise TypeError(f"batch must have pictures, got queries of type {type(batch.queries).__name__}")
        own, views = self.own, [batch.queries, batch.gallery]
        if own.lambda_ps:
            orders = draw_orders(len(batch.labels), own.shuffle_grid, self._begun().seed, step)
            views += [shuffle_patches(pictures, orders) for pictures in views]
        found, propagate = self._embedded(torch.cat(views))
        sketch, photo, *shuffled = found.split(len(batch.labels))
        tau = own.temperature if self.temperature is None else torch.exp(-self.temperature.log_scale)
        values = self.modalities.pair_losses(
            torch.stack([sketch, photo, self._words(batch.labels)]),
            torch.stack(shuffled) if shuffled else None,
            batch.labels,
            batch.instances,
            batch.kinds,
            tau,
        )
        values["loss"].backward()
        propagate()
        return values, photo.detach()

    def _words(self, labels: Tensor) -> Tensor:
        if self._texts is None:
            self._texts = self._tower_texts(self._begun())
        return self.text_layer(self._texts[labels])

    def _every_text(self, plan: StepPlan) -> Tensor:
        with torch.no_grad():
            return self.text_layer(self._tower_texts(plan))

    @torch.no_grad()
    def _tower_texts(self, plan: StepPlan) -> Tensor:
        """Return unit vectors [n, text width] of the captions of all categories."""
        return self._encode_all(self._captions(plan))

    def _captions(self, plan: StepPlan) -> Sequence[str]:
        return [self.batching.caption(name) for name in plan.names]

    def _encode_captions(self, texts: Sequence[str]) -> Tensor:
        return self.text_layer(super()._encode_captions(texts))
