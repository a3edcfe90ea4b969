"""The interface every retrieval system in this package implements: images and texts in, unit vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from hystar_fast.methods.inputs import MiddleSquare, PictureReader, TensorPreprocess
from hystar_fast.models.config import HystarConfig

_DEFAULT_SIDE = 64


class Method(ABC):
    """One retrieval system.

    The harness hands every system the same images: [B, 3, H, W] floating point in [0, 1], not normalised. A system
    does its own resizing and normalisation. What it does not have it leaves out: the defaults below are a system
    without a style input, without text and without anything to train.

    Attributes:
        name: what it is called in tables and files.
        begins_with_its_first_batch: whether its first forward pass in training places parameters by the batch it sees.
        reads_style_on_the_way: whether `encode_image` makes the style of its images in the pass that embeds them.
        modules: what is switched between training and evaluation, and holds what trains.
        preprocess: what makes its backbone's input of the images it gets; None for a system without a backbone.
        config: the description it was built from, where there is one.
        settings: what it was built with besides `config`.
        fingerprints: part -> hash of the frozen weights it stands on; an adapter file fits no others.
    """

    name: str
    begins_with_its_first_batch: bool = False
    reads_style_on_the_way: bool = False
    modules: tuple[nn.Module, ...] = ()
    preprocess: TensorPreprocess | None = None
    config: HystarConfig | None = None
    settings: Mapping[str, int] = MappingProxyType({})
    fingerprints: Mapping[str, str | None] = MappingProxyType({})

    @property
    def reader(self) -> PictureReader:
        """Reads pictures as its backbone frames them: crops them to the middle square, or squashes them to one."""
        return MiddleSquare(_DEFAULT_SIDE) if self.preprocess is None else self.preprocess

    @abstractmethod
    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W]; `style` [B, d] is what `style()` gave, computed here if None."""

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        """Unit vectors [B, D] of texts, or None for a system that takes no text."""
        return None

    def style(self, images: Tensor) -> Tensor | None:
        """Style vectors [B, d] that depend on nothing that trains (so they may be cached), or None if it takes none."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters by group; a group is what gets its own learning rate."""
        return {}

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        """The training loss of unit vectors [N, D], row i of `target` being the match of row i of `query`.

        Raises:
            TypeError: the system has nothing to train.
        """
        raise TypeError(f"method {self.name!r} has nothing to train")

    def train(self, mode: bool = True) -> None:
        """Switch `modules` between training and evaluation."""
        for module in self.modules:
            module.train(mode)

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by its name within `modules`: what a file of this method holds."""
        wanted = {id(p) for group in self.parameter_groups().values() for p in group}
        return {n: p for module in self.modules for n, p in module.named_parameters() if id(p) in wanted}


def count_parameters(method: Method) -> dict[str, int]:
    """Trainable parameters of a method by group.

    Raises:
        ValueError: a parameter is in two groups.
    """
    groups = method.parameter_groups()
    everything = [id(p) for group in groups.values() for p in group]
    if len(set(everything)) != len(everything):
        raise ValueError(f"parameter_groups of method {method.name!r} must be disjoint, got a parameter twice")
    return {name: sum(p.numel() for p in group) for name, group in groups.items()}
