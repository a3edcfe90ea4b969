"""Settings of TKI: the section ``[tki]`` of a settings file, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hystar_fast.methods.own_settings import OwnSettings
from hystar_fast.methods.step_trained import Batching
from hystar_fast.methods.tki.aggregation import POSITIVES
from hystar_fast.methods.tki.ball_similarity import SIMILARITIES
from hystar_fast.methods.tki.tki_head import GEOMETRIES, STARTS

LABELS = ("categories", "captions")
FILE = "file:"

_CHOICES = {
    "head": ("mlp", "wccn"),
    "word_init": ("normal", "words"),
    "geometry": GEOMETRIES,
    "start": STARTS,
    "similarity": SIMILARITIES,
    "positives": POSITIVES,
    "select": ("text", "last"),
}
_FLAGS = ("bias", "self_in_denominator")
_COUNTS = {"words": 2, "depth": 1, "hidden": 0, "aggregation_classes": 0, "steps_expansion": 0, "steps_aggregation": 0}
_ABOVE_ZERO = ("alpha", "tau_expansion", "tau_aggregation", "radius", "input_norm", "lr_expansion", "rho")
_AT_LEAST_ZERO = ("lam", "category_weight", "word_std")


@dataclass(frozen=True)
class TKIConfig(OwnSettings):
    """Settings of TKI; the defaults are those of this package (``tki-package``). ``tki-literal`` follows the paper.

    Attributes:
        words: P, the learned style words.
        word_init: their first values are drawn about 0 ("normal"), or about the mean embedding of the style words of
            the selection on texts ("words").
        word_std: deviation of their first values.
        template, domain_template, class_template: of the prompts, as
            :class:`hystar_fast.methods.tki.tki_prompts.Prompts` takes them.
        labels: the names that train: "categories" or "captions" of the data set, or "file:<path>" with one a line.
        alpha, mu: slope and margin of the diversity of styles (Eq. 1).
        lam: weight of the diversity (Eq. 5); 0 leaves it out.
        category_weight: weight of the categories in Eq. 5, printed as 1; 0 leaves them out, a row of Table 5.
        tau_expansion, tau_aggregation: temperatures of Eq. 3 and Eq. 6.
        lr_expansion: learning rate of the words; that of the head is ``optim.learning_rate``.
        steps_expansion, steps_aggregation: of the two stages; without any the head or the words stay as they begin.
        aggregation_classes: classes in a step of the second stage; 0 for all while P C is at most 8192, else 256.
        head: "mlp" trains in the second stage; "wccn" is the baseline in closed form, see
            :class:`hystar_fast.methods.tki.whitening_head.WhiteningHead`, and needs steps_aggregation = 1, in which it
            is computed, and select = "last".
        rho: shrinkage of "wccn".
        geometry, radius, depth, hidden, bias, start, input_norm: see :class:`hystar_fast.methods.tki.tki_head.TKIHead`.
        similarity: "cosine", "dot" or "poincare", in the second stage and in retrieval.
        self_in_denominator, positives: see :func:`hystar_fast.methods.tki.aggregation.aggregation_loss`.
        select: "text" keeps the head that is best on style words and names that never train; "last" the last one.

    Raises:
        ValueError, TypeError: a field has the wrong value or type; the message says what it must be.

    >>> TKIConfig.from_dict({"radius": 2.0}).steps
    1000
    """

    words: int = 20
    word_init: str = "normal"
    word_std: float = 0.02
    template: str = "A {word} style of {class}."
    domain_template: str = "A {word} style of"
    class_template: str = "{class}"
    labels: str = "categories"
    alpha: float = 10.0
    mu: float = 0.5
    lam: float = 1.0
    category_weight: float = 1.0
    tau_expansion: float = 0.1
    tau_aggregation: float = 0.1
    lr_expansion: float = 0.005
    steps_expansion: int = 500
    steps_aggregation: int = 500
    aggregation_classes: int = 0
    head: str = "mlp"
    rho: float = 3.0
    geometry: str = "last"
    radius: float = 1.0
    depth: int = 2
    hidden: int = 0
    bias: bool = True
    start: str = "clip"
    input_norm: float = 1.0
    similarity: str = "cosine"
    self_in_denominator: bool = True
    positives: str = "inside"
    select: str = "text"

    section: ClassVar[str] = "tki"
    title: ClassVar[str] = "TKI"
    stages: ClassVar[tuple[str, ...]] = ("steps_expansion", "steps_aggregation")

    def __post_init__(self) -> None:
        self._check_choices(_CHOICES)
        self._check_flags(_FLAGS)
        self._check_counts(_COUNTS)
        self._check_numbers(above_zero=_ABOVE_ZERO, at_least_zero=_AT_LEAST_ZERO, finite=("mu",))
        if self.labels not in LABELS and not self.labels.startswith(FILE):
            raise ValueError(
                f"tki.labels must be one of {', '.join(map(repr, LABELS))} or '{FILE}<path>', got {self.labels!r}"
            )
        if self.head == "wccn":
            for name, needed in (("steps_aggregation", 1), ("select", "last"), ("similarity", "cosine")):
                if getattr(self, name) != needed:
                    raise ValueError(
                        f"tki.{name} must be {needed!r} for tki.head = 'wccn', which is computed and not trained, got "
                        f"{getattr(self, name)!r}"
                    )
        if not self.steps:
            raise ValueError("tki.steps_expansion or tki.steps_aggregation must be above 0, got 0 and 0")
        if not self.lam and not self.category_weight and self.steps_expansion:
            raise ValueError("tki.lam or tki.category_weight must be above 0, got 0 and 0, which would train no word")
        if not self.bias and self.geometry != "euclidean" and self.similarity != "poincare":
            raise ValueError(
                "tki.bias must be true unless tki.similarity is 'poincare': without it a hyperbolic layer keeps every "
                "direction of the linear one, got false"
            )
        if self.similarity == "poincare" and self.geometry == "euclidean":
            raise ValueError("tki.similarity must be 'cosine' or 'dot' for tki.geometry = 'euclidean', got 'poincare'")

    @property
    def batching(self) -> Batching:
        """How a run makes its batches: names alone."""
        return Batching(of="names", names=self.labels)
