"""The interface of every retrieval system in this package: images and texts in, unit vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from hystar_fast.data.images import Resize, ResizeTo
from hystar_fast.methods.conversion import MEAN_SHIFT, Conversion
from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.models.config import HystarConfig

Role = Literal["query", "gallery"]
QUERY: Role = "query"
GALLERY: Role = "gallery"
_DEFAULT_SIZE = (64, 64)


class Method(ABC):
    """One retrieval system.

    Every picture comes as its `resize` makes it: uint8 [3, *resize.size], or floating point in [0, 1] after
    augmentation; the method normalises it. The defaults below are those of a system without a style input, without
    text, and without anything to train.

    Attributes:
        name: used in tables and files.
        initialises_from_first_batch: whether the first forward pass in training initialises parameters from its batch.
        computes_style_in_encode: whether `encode_image` computes the style of its images in the same pass.
        similarity: compares its vectors; cosine for unit vectors.
        modules: the modules that hold the parameters and are switched between training and evaluation.
        resize: makes the method's input from a picture of any size.
        config: the configuration it was built from; None if it was built without one.
        settings: its arguments besides `config`, such as a rank; values that JSON can hold.
        fingerprints: part -> hash of the frozen weights; an adapter file fits no other weights.
        style_means: style -> mean vector [D] of training pictures, the gallery's first; see
            :func:`hystar_fast.retrieval.modality_means.modality_means`. An adapter file keeps them.
    """

    name: str
    initialises_from_first_batch: bool = False
    computes_style_in_encode: bool = False
    similarity: Similarity = COSINE
    modules: tuple[nn.Module, ...] = ()
    resize: Resize = ResizeTo(_DEFAULT_SIZE)
    config: HystarConfig | None = None
    settings: Mapping[str, int | float | str | bool] = MappingProxyType({})
    fingerprints: Mapping[str, str | None] = MappingProxyType({})
    style_means: Mapping[str, Tensor] = MappingProxyType({})

    @abstractmethod
    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return unit vectors [B, D] of images [B, 3, H, W]; `style` [B, d] comes from `style()`, or is computed."""

    def encode_query(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return unit vectors [B, D] of queries, which a method may encode in another way than the gallery."""
        return self.encode_image(images, style)

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        """Return unit vectors [B, D] of texts, or None if the system has no text encoder."""
        return None

    def encode(self, images: Tensor, role: Role, style: Tensor | None = None) -> Tensor:
        """Return what `encode_query` or `encode_image` returns, by the role of the images, never by their pixels."""
        return self.encode_query(images, style) if role == QUERY else self.encode_image(images, style)

    def style(self, images: Tensor) -> Tensor | None:
        """Return style vectors [B, d] that do not change while it trains, or None if the system has no style."""
        return None

    def conversions(self) -> dict[str, Conversion]:
        """Return by name how vectors of queries can be moved to the gallery's modality: by `style_means`, if any."""
        return {MEAN_SHIFT: Conversion(self.style_means)} if self.style_means else {}

    def convert(self, vectors: Tensor, source: str, target: str, by: str | None = None) -> Tensor:
        """Return vectors [n, D] of one modality moved to another; unchanged by a method that has no conversion.

        Args:
            vectors: unit vectors [n, D].
            source, target: modalities, such as "sketch" and "photo".
            by: a name of `conversions`; by default the first.

        Raises:
            ValueError: an unknown modality or conversion.
        """
        ways = self.conversions()
        if by is not None and by not in ways:
            raise ValueError(f"by must be one of {', '.join(ways) or '(none)'} for {self.name!r}, got {by!r}")
        if not ways:
            return vectors
        return ways[by or next(iter(ways))](vectors, source, target)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by group; each group has its own learning rate."""
        return {}

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        """Return the training loss of unit vectors [N, D]; row i of `target` is the match of row i of `query`.

        Raises:
            TypeError: the method has no trainable parameters.
        """
        raise TypeError(f"method must have trainable parameters, got {self.name!r}")

    def train(self, mode: bool = True) -> None:
        """Switch `modules` between training and evaluation."""
        for module in self.modules:
            module.train(mode)

    def trained_parameters(self) -> dict[str, Tensor]:
        """Return the trained parameters by their names in `modules`: the content of an adapter file."""
        wanted = {id(p) for group in self.parameter_groups().values() for p in group}
        return {n: p for module in self.modules for n, p in module.named_parameters() if id(p) in wanted}

    def tuned_weights(self) -> frozenset[str]:
        """Return the names of those of `trained_parameters` that were weights of the backbone before training."""
        return frozenset()


def count_parameters(method: Method) -> dict[str, int]:
    """Count the trainable parameters of a method by group.

    Raises:
        ValueError: a parameter is in two groups.
    """
    groups = method.parameter_groups()
    everything = [id(p) for group in groups.values() for p in group]
    if len(set(everything)) != len(everything):
        raise ValueError(f"parameter_groups of method {method.name!r} must be disjoint, got a parameter twice")
    return {name: sum(p.numel() for p in group) for name, group in groups.items()}
