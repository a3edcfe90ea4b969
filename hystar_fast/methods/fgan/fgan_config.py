"""Settings of FGAN: the section ``[fgan]`` of a settings file, checked, and its presets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from hystar_fast.data.nearest_name import with_nearest
from hystar_fast.methods.fgan.fgan_losses import ANCHORS, CONTRASTS, RECONSTRUCTIONS, TRIPLETS
from hystar_fast.methods.fgan.label_similarity import RETRIEVALS
from hystar_fast.methods.fgan.labels import BOTTLENECKS, RECONSTRUCTED
from hystar_fast.methods.fgan.regions import AGGREGATES, REGIONS, check_regions
from hystar_fast.methods.fgan.teachers import TEACHERS
from hystar_fast.methods.own_settings import OwnSettings
from hystar_fast.methods.step_trained import Batching

LEAST_AREA = 0.5  # of a picture, that a random crop keeps

_CHOICES = {
    "image_regions": (49, 196),
    "aggregate": AGGREGATES,
    "regions": REGIONS,
    "jacobian": ("full", "diagonal"),
    "anchors": ANCHORS,
    "triplets": TRIPLETS,
    "contrast": CONTRASTS,
    "bottleneck": BOTTLENECKS,
    "reconstruct": RECONSTRUCTED,
    "reconstruction": RECONSTRUCTIONS,
    "reconstruction_target": ("detached", "live"),
    "text_context": ("gru", "none"),
    "teacher": TEACHERS,
    "pairs": ("instance", "category"),
    "augment": ("crop", "none"),
    "retrieval": RETRIEVALS,
}
_FLAGS = ("control_variate", "perturb_at_evaluation", "region_norm", "pool_projection")
_AT_LEAST_ZERO = ("margin", "semi_margin", "alpha", "kl_weight", "align", "label_weight", "region_weight")
_ABOVE_ZERO = ("sigma", "teacher_scale")
_COUNTS = ("width", "embedding", "labels", "samples")


@dataclass(frozen=True)
class FGANConfig(OwnSettings):
    """Settings of FGAN; the defaults are the paper's, with its gaps filled from the authors' code.

    Attributes:
        image_encoder: "torchvision:vgg19_bn", "timm:<name>", "random" (a small convolution, for tests), or "backbone":
            the image tower of the backbone of the run.
        image_weights: of "torchvision:" and "timm:": the name of torchvision weights ("timm": any name means its own),
            a local state dict, or None for random weights.
        image_regions: 49, or 196 of VGG without its last pooling.
        text_encoder: "words": vectors of words from a file; "transformers:<id or path>": a text model such as BERT;
            "backbone": the text tower of the backbone of the run; "pictures": the other side are pictures too, such as
            sketches, with the same encoder and heads of their own.
        text_vectors: of "words": the file of their vectors, see :mod:`hystar_fast.data.word_vectors`.
        text_context: of "words": "gru", a bidirectional GRU, or "none", a linear layer.
        width: d of the regions behind the encoders.
        embedding: d_x of the region embeddings.
        labels: C; with prototypes their number.
        image_regions_kept, text_regions_kept, aggregate, region_norm, regions: see
            :class:`hystar_fast.methods.fgan.regions.RegionHead`.
        jacobian: of the perturbed top-K: "full", the paper's (Eq. 8), or "diagonal", the authors' code.
        control_variate: whether the full Jacobian is estimated with less variance, at the same expectation.
        sigma, samples: of the perturbed top-K.
        perturb_at_evaluation: whether regions are chosen with noise in evaluation too.
        margin, semi_margin, alpha, anchors, triplets, contrast: of the contrast; "pairwise" and "classify" have no
            semi-positives.
        region_weight, label_weight: factors of the contrast and of the losses of the labels; 0 leaves them out.
        pool_projection, bottleneck, reconstruct: see :class:`hystar_fast.methods.fgan.labels.LabelHead`.
        reconstruction, kl_weight: error and factor of the divergence of the bottleneck.
        reconstruction_target: "live" lets the target of the decoder learn too; both sides can then shrink it.
        align: factor of the four divergences between teacher and labels.
        teacher: "network" (ResNet-50), "prototypes" (other drawings), "names", or an ablation of Table 4.
        teacher_weights: of the network: the name of torchvision weights, a local state dict, or None for random ones,
            which teach noise.
        teacher_style: the style of the drawings that are prototypes, one of each instance that trains.
        teacher_scale: inverse temperature of prototypes, names and class words.
        pairs: "instance": a query trains with its own picture; "category": with another one of its category each time.
        augment: "crop": a random part of at least half of each picture; "none": pictures as they are, whose features
            and labels are computed once.
        retrieval: the similarity, see :class:`hystar_fast.methods.fgan.label_similarity.LabelSimilarity`.

    Raises:
        ValueError, TypeError: a field has the wrong value or type; the message says what it must be.

    >>> FGANConfig.from_dict({"alpha": 0.0}).margin
    0.5
    """

    image_encoder: str = "torchvision:vgg19_bn"
    image_weights: str | None = "IMAGENET1K_V1"
    image_regions: int = 49
    text_encoder: str = "words"
    text_vectors: str = ""
    text_context: str = "gru"
    width: int = 512
    embedding: int = 512
    labels: int = 1000
    image_regions_kept: int | float = 4
    text_regions_kept: int | float = 4
    aggregate: str = "concat"
    region_norm: bool = True
    regions: str = "salient"
    jacobian: str = "full"
    control_variate: bool = True
    sigma: float = 0.05
    samples: int = 1000
    perturb_at_evaluation: bool = False
    margin: float = 0.5
    semi_margin: float = 0.5
    alpha: float = 0.1
    anchors: str = "both"
    triplets: str = "selective"
    contrast: str = "triplet"
    region_weight: float = 1.0
    label_weight: float = 1.0
    pool_projection: bool = True
    bottleneck: str = "vae"
    reconstruct: str = "latent"
    reconstruction: str = "mse"
    reconstruction_target: str = "detached"
    kl_weight: float = 1e-4
    align: float = 0.5
    teacher: str = "network"
    teacher_weights: str | None = "IMAGENET1K_V1"
    teacher_style: str = "flat"
    teacher_scale: float = 30.0
    pairs: str = "instance"
    augment: str = "crop"
    retrieval: str = "joint"

    section: ClassVar[str] = "fgan"
    title: ClassVar[str] = "FGAN"

    def __post_init__(self) -> None:
        self._check_choices(_CHOICES)
        self._check_flags(_FLAGS)
        self._check_counts(dict.fromkeys(_COUNTS, 1))
        self._check_numbers(above_zero=_ABOVE_ZERO, at_least_zero=_AT_LEAST_ZERO)
        for side in ("image_regions_kept", "text_regions_kept"):
            check_regions(f"fgan.{side}", getattr(self, side), self.aggregate, self.regions)
        _check_encoder("image_encoder", self.image_encoder, ("torchvision:vgg19_bn", "random", "backbone"), "timm")
        words = ("words", "backbone", "pictures")
        _check_encoder("text_encoder", self.text_encoder, words, "transformers")
        if self.region_weight == 0 and self.label_weight == 0:
            raise ValueError(
                "fgan.region_weight or fgan.label_weight must be above 0, got 0 and 0, which would train nothing"
            )

    @property
    def own_network(self) -> str | None:
        """The encoder that it has in place of the backbone, with its weights; None where it takes the backbone."""
        if "backbone" in (self.image_encoder, self.text_encoder):
            return None
        weights = "" if self.image_encoder == "random" else f" ({self.image_weights or 'random'})"
        return f"{self.image_encoder}{weights}"

    @property
    def batching(self) -> Batching:
        """How a run makes its batches."""
        return Batching(
            of="pairs",
            texts=self.text_encoder != "pictures",
            by=self.pairs,
            crop=LEAST_AREA if self.augment == "crop" else 1.0,
            prototypes=self.teacher_style if self.reads_prototypes else "",
        )

    @property
    def reads_prototypes(self) -> bool:
        """Tell whether labels come from other drawings; so they do of ablations of a run on a backbone."""
        ablated = self.teacher in ("random", "one-hot") and self.image_encoder == "backbone"
        return self.label_weight > 0 and (self.teacher == "prototypes" or ablated)


def _check_encoder(name: str, value: object, choices: tuple[str, ...], prefix: str) -> None:
    is_named = isinstance(value, str) and value.startswith(f"{prefix}:") and len(value) > len(prefix) + 1
    if value not in choices and not is_named:
        raise ValueError(
            f"fgan.{name} must be one of {_listed(choices)} or '{prefix}:<name>', got {with_nearest(value, choices)}"
        )


def _listed(choices: Iterable[object]) -> str:
    return ", ".join(map(repr, choices))
