"""Settings of ACNet: the section ``[acnet]`` of a settings file, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from hystar_fast.data.nearest_name import with_nearest
from hystar_fast.methods.own_settings import OwnSettings
from hystar_fast.methods.step_trained import Batching

STRIDE, SMALLEST = 4, 24
_LEAST = {
    "embedding": 1,
    "channels": 1,
    "generator_blocks": 1,
    "warmup_epochs": 0,
    "gamma_identity": 0,
    "cycle_epochs": 1,
}
_POSITIVE = ("lambda_norm", "temperature", "proxy_lr", "generator_lr", "discriminator_lr", "cycle_lr")


@dataclass(frozen=True)
class ACNetConfig(OwnSettings):
    """Settings of :class:`ACNet`. The defaults are those of the published code, which made the paper's figures.

    Attributes:
        extractor: the retrieval network: ``"timm:<name>"``, a CNN of timm with global max pooling and a linear layer,
            or ``"backbone"``, the image tower of the configuration's backbone.
        weights: of a ``"timm:"`` extractor: ``"random"``, a tag of timm, which is downloaded, or a file.
        embedding: width of the embeddings; a linear layer makes it, unless the image tower of ``"backbone"`` has it.
        image_size: pixels a side, a multiple of 4, at least 24.
        channels: of the first layer of the generator and of the discriminator.
        generator_blocks: residual blocks of the generator.
        gan: adversarial loss: ``"lsgan"`` (squares) or ``"vanilla"`` (Eq. 1, with -log D(G(s)) for the generator).
        gan_init: first weights of generator and discriminator: torch's, or ``"normal"``, N(0, 0.02).
        norm_reduction: the retrieval loss is the ``"mean"`` or the ``"sum"`` (Eq. 7) of its terms.
        lambda_norm: weight of the retrieval loss.
        gamma_identity: weight of the mean of |G(photo) - photo|; 0 leaves it out.
        temperature: of NormSoftmax.
        loss: the retrieval loss (Table VIII); all but the first two need pytorch-metric-learning.
        synthesis: ``"joint"``; ``"none"``: no generator, and sketches are embedded as they are; or ``"two-stage"``: a
            CycleGAN first, and then the extractor on what its frozen generator makes of the sketches (Table II).
        sketch_term: whether the sketch itself has a term beside its generated picture (Table V).
        augment: changes of the training pictures beside the mirroring (Table X).
        flip: the chance that a picture is mirrored.
        warmup_epochs: epochs in which the extractor trains in its last linear layer only; whole from the start where
            neither that layer nor the loss has parameters.
        norm_statistics: of BatchNorm in training: ``"fixed"``, or ``"batch"``, those of each input of the batch.
        pixels: input of the extractor: ``"half"`` is the generator's range [-1, 1]; ``"imagenet"`` or ``"own"``
            normalise it with ImageNet's statistics or those of the weights.
        proxy_lr, generator_lr, discriminator_lr: rates of Adam; the extractor's is ``optim.learning_rate``.
        cycle_epochs: of ``synthesis="two-stage"``: the first epochs, which train the CycleGAN alone.
        cycle_lr: rate of Adam for the generators and discriminators of ``synthesis="two-stage"``.

    Raises:
        ValueError: a value is out of range, or two do not fit; the message names them.

    Source: Ren et al., ACNet (IEEE TCSVT 2023), and its public code where the two differ, see ``docs/acnet.md``.
    """

    extractor: str = "timm:resnet50"
    weights: str = "resnet50.ram_in1k"
    embedding: int = 512
    image_size: int = 224
    channels: int = 8
    generator_blocks: int = 8
    gan: Literal["lsgan", "vanilla"] = "lsgan"
    gan_init: Literal["torch", "normal"] = "torch"
    norm_reduction: Literal["mean", "sum"] = "mean"
    lambda_norm: float = 10.0
    gamma_identity: float = 0.1
    temperature: float = 0.05
    loss: Literal["normsoftmax", "cross_entropy", "proxy_anchor", "triplet", "margin"] = "normsoftmax"
    synthesis: Literal["joint", "none", "two-stage"] = "joint"
    sketch_term: bool = True
    augment: Literal["flip", "color", "solarize", "both"] = "flip"
    flip: float = 0.5
    warmup_epochs: int = 1
    norm_statistics: Literal["fixed", "batch"] = "fixed"
    pixels: Literal["half", "imagenet", "own"] = "half"
    proxy_lr: float = 1e-3
    generator_lr: float = 1e-3
    discriminator_lr: float = 1e-4
    cycle_epochs: int = 10
    cycle_lr: float = 2e-4

    section: ClassVar[str] = "acnet"
    title: ClassVar[str] = "ACNet"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(ACNetConfig).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                choices = get_args(hint)
                shown = with_nearest(value, choices)
                raise ValueError(f"acnet.{name} must be one of {', '.join(choices)}, got {shown}")
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"acnet.{name} must be at least {least}, got {getattr(self, name)}")
        for name in _POSITIVE:
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"acnet.{name} must be greater than 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"acnet.flip must be between 0 and 1, got {self.flip}")
        if self.image_size % STRIDE or self.image_size < SMALLEST:
            raise ValueError(
                f"acnet.image_size must be a multiple of {STRIDE} and at least {SMALLEST}, got {self.image_size}"
            )
        if self.extractor != "backbone" and not (self.extractor.startswith("timm:") and self.extractor != "timm:"):
            raise ValueError(f'acnet.extractor must be "timm:<name>" or "backbone", got {self.extractor!r}')
        if self.synthesis != "joint" and not self.sketch_term:
            raise ValueError(f'acnet.sketch_term must be true for acnet.synthesis = "{self.synthesis}", got false')

    @property
    def timm_name(self) -> str | None:
        """The model of timm; None for the image tower of the backbone."""
        return self.extractor.removeprefix("timm:") if self.extractor != "backbone" else None

    @property
    def compares_pairs(self) -> bool:
        """Tell whether the loss compares the pictures of a batch, so that a part of it is another loss."""
        return self.loss in ("triplet", "margin")

    @property
    def needs_whole_batch(self) -> bool:
        """Tell whether the loss of a batch is another than the mean over its parts.

        Proxy-Anchor compares no two pictures, but takes a logarithm of a sum over those of the batch for each proxy.
        """
        return self.loss not in ("normsoftmax", "cross_entropy") or self.norm_statistics == "batch"

    @property
    def own_network(self) -> str | None:
        """The network that it has in place of the backbone, with its weights; None where it takes the backbone."""
        return None if self.timm_name is None else f"{self.timm_name} ({self.weights})"

    @property
    def batching(self) -> Batching:
        """How a run makes its batches."""
        return Batching(flip=self.flip)
