"""Settings of MA-SBIR: the section ``[ma_sbir]`` of a settings file, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hystar_fast.methods.ma_sbir.fine_losses import FINE_PAIRS
from hystar_fast.methods.ma_sbir.ma_sbir_losses import CLASSIFIED, CONVERSIONS, DUPLICATES, ORTHOS
from hystar_fast.methods.own_settings import OwnSettings
from hystar_fast.methods.step_trained import Batching

INITS = ("mean", "normal", "zero")
LABELS = ("categories", "captions")
ORDERS = ("shuffled", "listed")
UNPAIRED = ("none", "disjoint", "gallery", "queries")

PRESETS: dict[str, dict[str, Any]] = {
    "package": {},
    "authors": {
        "unused_modalities": 1,
        "ortho": "elementwise",
        "divide_by_weights": True,
        "learn_temperature": True,
        "decay_modalities": True,
        "modality_init": "normal",
        "duplicates": "negatives",
    },
    "paper": {"conversion": "normalised", "classify": "pair", "duplicates": "negatives", "modality_init": "normal"},
    "fine": {
        "fine": True,
        "freeze_text": True,
        "lambda_mc": 0.02,
        "lambda_rec": 0.1,
        "lambda_ortho": 0.02,
        "modality_lr": 1e-2,
    },
}
"""Name -> settings that differ from the defaults."""

_CHOICES = {
    "conversion": CONVERSIONS,
    "classify": CLASSIFIED,
    "ortho": ORTHOS,
    "duplicates": DUPLICATES,
    "modality_init": INITS,
    "labels": LABELS,
    "order": ORDERS,
    "unpaired": UNPAIRED,
    "fine_pairs": tuple(FINE_PAIRS),
}
_FLAGS = ("divide_by_weights", "learn_temperature", "decay_modalities", "freeze_text", "fine")
_ABOVE_ZERO = ("temperature", "modality_lr")
_AT_LEAST_ZERO = ("lambda_sem", "lambda_mc", "lambda_rec", "lambda_ortho", "lambda_ps", "clip_img")
# what the fine-grained variant needs, and what it alone reads
_OF_FINE = {"freeze_text": True, "labels": "categories", "order": "shuffled", "unpaired": "none", "classify": "all"}
_OF_FINE_ALONE = ("clip_img", "lambda_ps", "shuffle_grid", "fine_pairs")


@dataclass(frozen=True)
class MASBIRConfig(OwnSettings):
    """Settings of MA-SBIR; the defaults are those of this package, with the weights of Sketchy. `PRESETS` has others.

    Attributes:
        lambda_sem, lambda_mc, lambda_rec, lambda_ortho: weights of Eq. 5, 8, 7 and 9; without any of them the vectors
            of the modalities are not trained.
        temperature: τ of Eq. 2.
        learn_temperature: train log(1/τ), with the rate of the towers.
        conversion: "additive", z - m_k + m_j, or "normalised", N(z - m_k) + m_j, as Eq. 6 is printed.
        classify: "all" conversions are classified, or "pair": those between a picture and its text.
        ortho: "dot" takes |z · m|, "elementwise" the sum of |z_d m_d|.
        duplicates: items of a batch with the same caption are "masked", or "negatives" of each other.
        divide_by_weights: divide the sum by 1 + the sum of the weights.
        modality_init: vectors begin as the "mean" embeddings of the modalities, as "normal" numbers or as "zero".
        unused_modalities: modalities without pictures, which are targets of conversions and classes all the same.
        decay_modalities: whether ``optim.weight_decay`` holds for the vectors, biases and norms too.
        modality_lr: learning rate of vectors and classifier; that of the towers is ``optim.learning_rate``.
        freeze_text: leave the text tower as it is; a caption is then encoded once.
        labels: captions are made of the "categories" of the data set, or are its "captions".
        template: of a caption; ``{}`` is the category or caption, with spaces for underscores.
        order: pictures are "shuffled" in each epoch, or come as "listed".
        unpaired: "disjoint" leaves half of the classes without gallery pictures and the other half without queries;
            "gallery" leaves a fifth with gallery pictures alone, "queries" a fifth with queries alone.
        fine: the fine-grained variant: sketches find their own photo, and are trained in pairs with it.
        clip_img: λ_ci of Eq. 11, which weighs sketches against photos, and 1 - λ_ci both against texts; of ``fine``,
            like those that follow.
        lambda_ps: λ_ps of Eq. 13, the weight of shuffled pictures; 0 shuffles none.
        shuffle_grid: n; pictures are cut into n x n squares.
        fine_pairs: "all" conversions between sketch, photo and text are trained, or "sketch_photo" alone.

    Raises:
        ValueError, TypeError: a field has the wrong value or type; the message says what it must be.

    >>> MASBIRConfig.preset("authors", lambda_rec=0.0).weights
    {'sem': 0.1, 'mc': 0.1, 'rec': 0.0, 'ortho': 0.0}
    """

    lambda_sem: float = 0.1
    lambda_mc: float = 0.1
    lambda_rec: float = 0.02
    lambda_ortho: float = 0.0
    temperature: float = 0.07
    learn_temperature: bool = False
    conversion: str = "additive"
    classify: str = "all"
    ortho: str = "dot"
    duplicates: str = "masked"
    divide_by_weights: bool = False
    modality_init: str = "mean"
    unused_modalities: int = 0
    decay_modalities: bool = False
    modality_lr: float = 5e-3
    freeze_text: bool = False
    labels: str = "categories"
    template: str = "a photo of a {}."
    order: str = "shuffled"
    unpaired: str = "none"
    fine: bool = False
    clip_img: float = 1.0
    lambda_ps: float = 0.5
    shuffle_grid: int = 2
    fine_pairs: str = "all"

    section: ClassVar[str] = "ma_sbir"
    title: ClassVar[str] = "MA-SBIR"
    checkpoints_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_choices(_CHOICES)
        self._check_flags(_FLAGS)
        self._check_counts({"unused_modalities": 0, "shuffle_grid": 1})
        self._check_numbers(above_zero=_ABOVE_ZERO, at_least_zero=_AT_LEAST_ZERO)
        if self.template.count("{}") != 1:
            raise ValueError(f"ma_sbir.template must have {{}} once, got {self.template!r}")
        if self.clip_img > 1:
            raise ValueError(f"ma_sbir.clip_img must be at most 1, got {self.clip_img}")
        if self.fine:
            for name, needed in {**_OF_FINE, "unused_modalities": 0}.items():
                if getattr(self, name) != needed:
                    raise ValueError(
                        f"ma_sbir.{name} must be {needed!r} with ma_sbir.fine, got {getattr(self, name)!r}"
                    )
            return
        for name in _OF_FINE_ALONE:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"ma_sbir.{name} must be left out without ma_sbir.fine, got {getattr(self, name)!r}")

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the losses beside L_clip."""
        names = ("sem", "mc", "rec", "ortho")
        return {name: getattr(self, f"lambda_{name}") for name in names}

    @property
    def trains_modalities(self) -> bool:
        """Tell whether a loss reads the vectors of the modalities."""
        return any(self.weights.values())

    @property
    def batching(self) -> Batching:
        """How a run makes its batches: captioned pictures of any style, or pairs of a sketch and its photo."""
        if self.fine:
            return Batching(of="pairs", by="instance", template=self.template, stored=False, within=True)
        return Batching(
            of="captioned", names=self.labels, template=self.template, order=self.order, unpaired=self.unpaired
        )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return the settings of a name of `PRESETS`, with changes.

        Raises:
            ValueError: another name.
        """
        if name not in PRESETS:
            raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls.from_dict({**PRESETS[name], **changes})
