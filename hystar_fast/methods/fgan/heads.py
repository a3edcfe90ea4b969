"""Heads of FGAN, which train: for each side from frozen tokens to a region embedding and a label distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hystar_fast.methods.fgan.encoders import Tokens
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.fgan_losses import (
    alignment,
    classification_contrast,
    cosine_distances,
    fine_grained_contrast,
    pairwise_contrast,
    reconstruction_error,
    standard_normal_divergence,
)
from hystar_fast.methods.fgan.label_similarity import describe
from hystar_fast.methods.fgan.labels import LabelHead, LabelOutput
from hystar_fast.methods.fgan.regions import RegionHead, Selector, hard_top_k

_GRU_WIDTH = 256  # a direction
SIDES = ("words", "tokens", "pictures")


class BranchOutput(NamedTuple):
    """Region embedding [B, d_x], saliency [B, N] or None, and label distribution of one side."""

    embedding: Tensor
    saliency: Tensor | None
    labels: LabelOutput

    @property
    def descriptors(self) -> Tensor:
        """Rows [B, d_x + C] that `LabelSimilarity` compares."""
        return describe(self.embedding, self.labels.log_labels)


class WordContext(nn.Module):
    """Words [B, T, width] in their order: a bidirectional GRU or nothing, a linear layer to `out`, a LayerNorm.

    The GRU does not run over padding, so that it changes no word.
    """

    def __init__(self, width: int, out: int, kind: str) -> None:
        super().__init__()
        self.gru = nn.GRU(width, _GRU_WIDTH, batch_first=True, bidirectional=True) if kind == "gru" else None
        self.project = nn.Linear(2 * _GRU_WIDTH if kind == "gru" else width, out)
        self.norm = nn.LayerNorm(out)

    def forward(self, values: Tensor, padding: Tensor | None) -> Tensor:
        if self.gru is not None:
            B, T = values.shape[:2]
            lengths = torch.full((B,), T) if padding is None else (~padding).sum(1).cpu()  # packing reads them there
            packed = pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
            values, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=T)
        return self.norm(self.project(values))


class Branch(nn.Module):
    """Heads of one side.

    Args:
        config: the settings.
        width: of its tokens.
        side: "words", "tokens" of a text model, or "pictures".
    """

    def __init__(self, config: FGANConfig, width: int, side: str) -> None:
        super().__init__()
        if side not in SIDES:
            raise ValueError(f"side must be one of {SIDES}, got {side!r}")
        self.context = WordContext(width, config.width, config.text_context) if side == "words" else None
        self.project = nn.Linear(width, config.width) if side != "words" and width != config.width else nn.Identity()
        self.region_head = RegionHead(
            config.width,
            config.embedding,
            kept=config.image_regions_kept if side == "pictures" else config.text_regions_kept,
            aggregate=config.aggregate,
            normalise=config.region_norm,
            regions=config.regions,
        )
        self.label_head = LabelHead(
            config.width,
            config.labels,
            pool_projection=config.pool_projection,
            bottleneck=config.bottleneck,
            reconstruct=config.reconstruct,
        )

    def forward(
        self, tokens: Tokens, *, select: Selector = hard_top_k, generator: torch.Generator | None = None
    ) -> BranchOutput:
        """Compute the embedding of the regions and the labels of all tokens; see `RegionHead` for the arguments."""
        values, padding, leading = tokens
        values = self.project(values) if self.context is None else self.context(values, padding)
        hidden = None if padding is None else padding[:, leading:]
        embedding, saliency = self.region_head(values[:, leading:], hidden, select=select, generator=generator)
        return BranchOutput(embedding, saliency, self.label_head(values, padding))


class FGANHeads(nn.Module):
    """Both branches of FGAN and its losses.

    Args:
        config: the settings.
        image_width: of the image tokens.
        other_width: of the tokens of the other side.
        other: the other side: "words", "tokens" or "pictures".
        classes: number of classes in training, for ``contrast="classify"`` alone.

    Raises:
        ValueError: ``contrast="classify"`` without classes.
    """

    def __init__(
        self, config: FGANConfig, image_width: int, other_width: int, other: str, *, classes: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.image = Branch(config, image_width, "pictures")
        self.other = Branch(config, other_width, other)
        self.classifier: nn.Linear | None = None
        if config.contrast == "classify":
            if classes is None or classes < 2:
                raise ValueError(f'classes must be at least 2 with contrast="classify", got {classes}')
            self.classifier = nn.Linear(config.embedding, classes)

    def losses(
        self,
        image: Tokens,
        other: Tokens,
        classes: Tensor,
        teacher: Tensor | None,
        *,
        select: Selector,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Compute every term of the loss of a batch of pairs, and "loss", what is minimised (Eq. 28).

        Args:
            image, other: tokens of M pairs; row i of one belongs to row i of the other.
            classes: int [M], for the contrast alone.
            teacher: probabilities [M, C]; None where ``label_weight`` is 0.
            select: the perturbed top-K.
            generator: of the noise of the latent, drawn for the images first, and of random regions.

        Returns:
            Scalars in float32; the terms come without their factors. A term that is left out is missing.
            "image_saliency_spread" and "other_saliency_spread" are no terms: the deviation of the saliency over the
            regions of an item, which must exceed ``sigma`` for the choice to depend on it.

        Raises:
            ValueError: no teacher where labels are learnt.
        """
        config = self.config
        sides = [
            branch(tokens, select=select, generator=generator)
            for branch, tokens in ((self.image, image), (self.other, other))
        ]
        terms = {
            f"{name}_saliency_spread": _spread(side.saliency.detach(), tokens)
            for name, side, tokens in (("image", sides[0], image), ("other", sides[1], other))
            if side.saliency is not None
        }
        total = torch.zeros((), device=classes.device)
        if config.region_weight:
            found, contrast = self._contrast(sides[0].embedding, sides[1].embedding, classes)
            terms |= found
            total = total + config.region_weight * contrast
        if config.label_weight:
            if teacher is None:
                raise ValueError(f"teacher must be given with label_weight {config.label_weight}, got None")
            labels = [side.labels for side in sides]
            terms["align"] = alignment(teacher, labels[0].log_labels, labels[1].log_labels, factor=1.0)
            learnt = config.align * terms["align"]
            if config.bottleneck == "vae":
                terms |= self._bottleneck(labels, generator)
                learnt = learnt + terms["reconstruction"] + config.kl_weight * terms["divergence"]
            total = total + config.label_weight * learnt
        return {**terms, "loss": total}

    def _contrast(self, image: Tensor, other: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        config = self.config
        if self.classifier is not None:
            loss = classification_contrast(self.classifier(image), self.classifier(other), classes)
            return {"classification": loss}, loss
        distances = cosine_distances(image, other)
        if config.contrast == "pairwise":
            loss = pairwise_contrast(distances, classes, margin=config.margin)
            return {"pairwise": loss}, loss
        found = fine_grained_contrast(
            distances,
            classes,
            margin=config.margin,
            semi_margin=config.semi_margin,
            anchors=config.anchors,
            triplets=config.triplets,
        )
        return found._asdict(), found.negative + config.alpha * found.semi_positive

    def _bottleneck(self, outputs: list[LabelOutput], generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the sums over both sides of the error of the decoder and of the divergence of the latent (Eq. 21)."""
        errors, divergences = [], []
        for branch, output in zip((self.image, self.other), outputs, strict=True):
            if output.mean is None or output.log_variance is None:
                raise TypeError('bottleneck must be "vae" to have a divergence, got "linear"')
            noise = torch.randn(output.mean.shape, generator=generator, device=output.mean.device)
            target = output.pooled if self.config.reconstruction_target == "live" else output.pooled.detach()
            errors.append(
                reconstruction_error(branch.label_head.reconstruct(output, noise), target, self.config.reconstruction)
            )
            divergences.append(standard_normal_divergence(output.mean, output.log_variance))
        return {"reconstruction": errors[0] + errors[1], "divergence": divergences[0] + divergences[1]}


def _spread(saliency: Tensor, tokens: Tokens) -> Tensor:
    """Return the mean over items of the standard deviation of saliency [B, N] over their regions."""
    if tokens.padding is None:
        return saliency.float().std(1, correction=0).mean()
    kept = ~tokens.padding[:, tokens.leading :]
    count = kept.sum(1, keepdim=True).clamp(min=1)
    values = torch.where(kept, saliency.float(), 0.0)
    deviations = torch.where(kept, values - values.sum(1, keepdim=True) / count, 0.0)
    return (deviations.square().sum(1, keepdim=True) / count).sqrt().mean()
