"""FGAN as a method: descriptors of pictures, sketches and texts, and their similarity."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hystar_fast.methods.fgan.encoders import ImageEncoder, TextEncoder, Tokens, WordEncoder
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.heads import BranchOutput, FGANHeads
from hystar_fast.methods.fgan.label_similarity import LabelSimilarity
from hystar_fast.methods.fgan.regions import Selector, hard_top_k
from hystar_fast.methods.interface import Method


class FGAN(Method):
    """Retrieval by regions and label distributions on frozen encoders.

    Its vectors are descriptors [x, log g] of width d_x + C, no unit vectors: `similarity` compares them.

    Args:
        settings: of the method.
        images: the frozen encoder of the pictures.
        texts: the frozen encoder of the texts; None where the other side are pictures, such as sketches.
        classes: number of classes in training, for ``contrast="classify"`` alone.
        select: chooses the regions in evaluation; `hard_top_k` unless they are chosen with noise there too.

    Raises:
        ValueError: ``text_encoder="pictures"`` with an encoder of texts, or another one without.
    """

    name = "fgan"

    def __init__(
        self,
        settings: FGANConfig,
        images: ImageEncoder,
        texts: TextEncoder | None,
        *,
        classes: int | None = None,
        select: Selector = hard_top_k,
    ) -> None:
        if (texts is None) != (settings.text_encoder == "pictures"):
            raise ValueError(f"texts must be None with text_encoder='pictures' alone, got {settings.text_encoder!r}")
        side = "pictures" if texts is None else "words" if isinstance(texts, WordEncoder) else "tokens"
        self.images, self.texts, self.select = images, texts, select
        self.heads = FGANHeads(settings, images.width, (texts or images).width, side, classes=classes)
        self.resize = images.resize
        self.modules = (self.heads, images, *(() if texts is None else (texts,)))
        self.similarity = LabelSimilarity(settings.embedding, settings.retrieval)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return descriptors [B, d_x + C] of pictures of the gallery, or of pictures that ask for texts."""
        return self.heads.image(self.images(images), select=self.select).descriptors

    def encode_query(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return descriptors of query pictures: of sketches by their own heads, of others as `encode_image` does."""
        if self.texts is not None:
            return self.encode_image(images)
        return self.heads.other(self.images(images), select=self.select).descriptors

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        return None if self.texts is None else self._texts(self.texts(texts)).descriptors

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"heads": list(self.heads.parameters())}

    def _texts(self, tokens: Tokens) -> BranchOutput:
        device = next(self.heads.parameters()).device
        padding = None if tokens.padding is None else tokens.padding.to(device)
        return self.heads.other(tokens._replace(values=tokens.values.to(device), padding=padding), select=self.select)
