"""What a comparison is made on: a data set with its three parts, a backbone, a protocol and a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch

from hystar_fast.cli.emoji_parts import EmojiParts
from hystar_fast.cli.record_parts import RecordParts
from hystar_fast.data.open import check_fixed
from hystar_fast.data.records import ImageSet
from hystar_fast.methods.interface import Method
from hystar_fast.methods.on_device import chosen_device
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.asked import Asked
from hystar_fast.retrieval.seeds import Queries
from hystar_fast.train.recipe import Recipe

BATCH_SIZE = 48
Ranks = dict[str, list[int]]


class Parts(Protocol):
    """A data set to train on, to choose by and to ask in the end.

    Attributes:
        styles: the picture styles that ask, all of them trained on unless a variant says otherwise.
        headline: those whose mean is the headline.
        cutoffs: what R@1 and R@5 look at.
    """

    styles: tuple[str, ...]
    headline: tuple[str, ...]
    cutoffs: Mapping[str, int]

    def setting(self) -> dict[str, Any]:
        """What ``compare.json`` says of the test part; only runs that agree on it belong together."""

    def tuning_setting(self) -> dict[str, Any]:
        """What ``tuning.json`` says of the other two parts."""

    def steps(self, batch_size: int) -> int:
        """The training steps where nobody says how many."""

    def recipe(self, rates: Mapping[str, float], steps: int, seed: int, styles: Sequence[str], size: int) -> Recipe:
        """How a method is trained here; `size` is that of the batch."""

    def train(self, method: Method, recipe: Recipe, device: torch.device) -> list[float]:
        """Train a method and return its losses."""

    def validate(self, method: Method, device: torch.device) -> dict[str, Any]:
        """R@1 and R@5 with intervals on the validation part: by style, and "hard_mean" over the headline's."""

    def test(self, method: Method, device: torch.device) -> tuple[Ranks, Asked | None]:
        """The rank of every query of the test part, and which those are; None where they are always the same."""

    def queries(self, asked: Asked | None) -> Queries:
        """What the ranks belong to."""

    def images(self) -> ImageSet:
        """The test part as a data set."""


@dataclass(frozen=True)
class Source:
    """Where the pictures and the weights come from, and how they are run.

    Attributes:
        data: "emoji", or what :func:`hystar_fast.data.open.open_images` takes.
        limit: use only so many concepts (pictures of each style) of every part; for trying things out.
        protocol: of the test part, "full" or "batch24".
        backbone, pretrained, style, style_pretrained, blocks: of :class:`HystarConfig`; None for `style_pretrained` is
            its default, for `blocks` the default of the backbone's depth.
        device: "auto", "cpu" or "cuda"; None for the CPU with the embedded drawings, and "auto" with other data.
        batch_size: pairs a step.
        gallery_style: of folders, shards and icons, the style that answers; None for their default.

    Raises:
        ValueError, TypeError: fields that are no :class:`HystarConfig`, or VGG as the style without weights.
    """

    data: str = "emoji"
    limit: int | None = None
    protocol: str = "full"
    backbone: str = "tiny"
    pretrained: str | None = "packaged"
    style: str = "clip"
    style_pretrained: str | None = None
    blocks: tuple[int, ...] | None = None
    device: str | None = None
    batch_size: int = BATCH_SIZE
    gallery_style: str | None = None

    def __post_init__(self) -> None:
        if self.config().lacks_style_weights:
            raise ValueError("--style vgg needs --style-pretrained: a torchvision weights name or a file")

    def config(self) -> HystarConfig:
        """The configuration that the methods and variants are built from."""
        config = HystarConfig(backbone=self.backbone, pretrained=self.pretrained, style=self.style, blocks=self.blocks)
        return config if self.style_pretrained is None else replace(config, style_pretrained=self.style_pretrained)

    def parts(self) -> Parts:
        """Open the data.

        Raises:
            ValueError: there is no such data, or the protocol does not go with it.
        """
        return _opened(self.data, self.limit, self.protocol, self.gallery_style)

    def place(self) -> torch.device:
        """The device everything runs on.

        Raises:
            ValueError: there is none of that name.
        """
        return chosen_device(self.device or ("cpu" if self.data == "emoji" else "auto"))

    def options(self) -> dict[str, Any]:
        """What a results file says beyond the data and the configuration, but for what is as usual."""
        changed: dict[str, tuple[Any, Any]] = {
            "batch_size": (self.batch_size, BATCH_SIZE),
            "protocol": (self.protocol, "full"),
            "gallery_style": (self.gallery_style, None),
        }
        return {name: value for name, (value, usual) in changed.items() if value != usual}


USUAL: dict[str, Any] = {"batch_size": BATCH_SIZE, "protocol": "full", "data": "emoji", "gallery_style": None}
"""What a results file means where it does not say."""


@lru_cache(maxsize=4)
def _opened(data: str, limit: int | None, protocol: str, gallery_style: str | None) -> Parts:
    if data == "emoji":
        check_fixed(data, gallery_style)
        if protocol != "full":
            raise ValueError(f"protocol must be full for the embedded drawings, got {protocol!r}")
        return EmojiParts(limit)
    return RecordParts(data, limit, protocol, gallery_style)
