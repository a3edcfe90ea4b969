"""The three parts of an experiment's data: training, validation and test, and training and evaluation on them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hystar_fast.data.displacement import DISPLACED, displace_queries
from hystar_fast.data.hold_out import hold_out
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.experiments.experiment_settings import Data, ExperimentSettings
from hystar_fast.experiments.variants import Variant, create_variant
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.mean_shift import MeanShift
from hystar_fast.retrieval.batch24 import CUTOFFS as BATCH24_CUTOFFS
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.evaluate import PROTOCOLS, TEXT, evaluate
from hystar_fast.retrieval.ranks import Ranks
from hystar_fast.train.loop import CheckpointPolicy, fit
from hystar_fast.train.pairs import TrainingPairs
from hystar_fast.train.recipe import Recipe

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
ADAPTERS = "adapters"
_NOT_IN_NAMES = re.compile(r"[^\w+=.-]")
USUAL_CUTOFFS: Mapping[str, int] = {"R@1": 1, "R@5": 5}


@dataclass(frozen=True)
class Splits:
    """The data of an experiment.

    Attributes:
        training, validation, test: no picture is in two of them. The queries of the last two are displaced if the
            settings say so and the data set is registered.
        registered: the test part as it is, if the queries of `test` are displaced.
        styles: the query styles of training.
        items: how many gallery pictures are in the training pairs.
        protocol: of the test part.
    """

    training: ImageSet
    validation: ImageSet
    test: ImageSet
    registered: ImageSet | None
    styles: tuple[str, ...]
    items: int
    protocol: str

    @property
    def headline(self) -> tuple[str, ...]:
        """The query styles whose mean R@1 is the headline figure and selects learning rates."""
        kinds = (*self.test.query_styles, TEXT)
        return self.test.headline_styles or tuple(kind for kind in kinds if kind in self.styles)

    @property
    def label(self) -> str:
        """The protocol, to be printed with every figure."""
        return protocol_label(self.protocol, is_displaced=self.registered is not None)

    @property
    def cutoffs(self) -> Mapping[str, int]:
        """The cut-off ranks of R@1 and R@5; under batch24 the published code counts more places."""
        if self.protocol != "batch24":
            return USUAL_CUTOFFS
        return dict(zip(USUAL_CUTOFFS, BATCH24_CUTOFFS.values(), strict=True))

    def info(self) -> dict[str, Any]:
        """Describe the parts for a results file."""
        return {
            "name": self.test.name,
            "gallery": {"style": self.test.gallery_style, "n": len(self.test.gallery)},
            "queries": {style: len(self.test.of_style(style)) for style in self.test.query_styles},
            "validation_gallery": len(self.validation.gallery),
            "training_items": self.items,
            "styles": list(self.styles),
            "headline": list(self.headline),
            "protocol": self.label,
            "cutoffs": dict(self.cutoffs),
        }


def open_splits(settings: ExperimentSettings) -> Splits:
    """Open the three parts of the data.

    A data set's own validation split is used if it has one, else a tenth of the training pictures. A data set without
    splits is divided by a hash of its names: 10 % validation, 20 % test.

    Raises:
        ValueError: the data cannot be opened, or a part has no query; or the protocol is unknown.
    """
    return _open(settings.data)


@lru_cache(maxsize=4)
def _open(data: Data) -> Splits:
    if data.protocol not in PROTOCOLS:
        raise ValueError(f"data.protocol must be one of {(*PROTOCOLS,)}, got {data.protocol!r}")
    training, validation, test = (part.select(limit=data.limit or None) for part in _divide(data))
    pairs = TrainingPairs(training)
    for part, name in ((validation, "validation"), (test, "test")):
        try:
            TrainingPairs(part, pairs.styles)
        except ValueError as error:
            raise ValueError(
                f"data.source must have queries in its {name} part, got none in {data.source}: {error}"
            ) from error
    validation, placed = place_queries(validation, data), place_queries(test, data)
    return Splits(
        training, validation, placed, None if placed is test else test, pairs.styles, len(pairs), data.protocol
    )


def place_queries(images: ImageSet, data: Data) -> ImageSet:
    """Return a data set with displaced queries if `data.displaced` is set and the data set is registered."""
    return displace_queries(images) if data.displaced and images.is_registered else images


def protocol_label(protocol: str, *, is_displaced: bool) -> str:
    """Return the description of a protocol that is printed with every figure."""
    return PROTOCOLS[protocol] + (f"; queries {DISPLACED}" if is_displaced else "")


def _divide(data: Data) -> tuple[ImageSet, ImageSet, ImageSet]:
    gallery_style = data.gallery_style or None
    training, test = (open_images(data.source, split, gallery_style=gallery_style) for split in ("train", "test"))
    if not training.has_splits:
        training, rest = hold_out(test, VALIDATION_SHARE + TEST_SHARE)
        validation, test = hold_out(rest, TEST_SHARE)
    else:
        try:
            validation = open_images(data.source, "val", gallery_style=gallery_style)
        except ValueError:  # this data set has no validation split
            training, validation = hold_out(training, VALIDATION_SHARE)
    for part in (training, validation, test):
        if not part.gallery:
            raise ValueError(
                f"data.source must have enough pictures for training, validation and test, got {part.name}"
            )
    return training, validation, test


def recipe_of(rates: Mapping[str, float], settings: ExperimentSettings, seed: int, styles: Sequence[str]) -> Recipe:
    """Return the recipe of an experiment's trainings; arguments as of `train_method`, and the query styles."""
    training, items = settings.training, open_splits(settings).items
    return Recipe(
        rates,
        steps=training.steps or training.epochs * max(1, items // min(training.batch_size, items)),
        batch_size=training.batch_size,
        warmup=training.warmup,
        schedule=training.schedule,
        clip_norm=training.clip_norm,
        styles=tuple(styles),
        jitter=training.jitter,
        seed=seed,
    )


def train_method(
    method: Method, name: str, rates: Mapping[str, float], settings: ExperimentSettings, seed: int
) -> list[float]:
    """Train a method or variant on the training part and return its losses; none if it makes no gradient steps.

    Args:
        method: built by :func:`hystar_fast.experiments.variants.create_variant`.
        name: of the method or variant; a variant may train on fewer styles.
        rates: learning rate of each parameter group.
        settings: of the experiment.
        seed: of the run.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    splits, device = open_splits(settings), settings.device()
    styles = Variant.parse(name).styles or splits.styles
    encoder = on_device(method, device)
    if isinstance(method, MeanShift):
        method.fit(place_queries(splits.training, settings.data), styles)
        return []
    recipe = recipe_of(rates, settings, seed, styles)
    pairs = TrainingPairs(splits.training, recipe.styles, encoder.resize)
    # In a batch by category other targets are relevant too: only a loss with a mask can exclude them.
    criterion: Any = getattr(method, "criterion", None)
    return fit(method, lambda: pairs, recipe, CheckpointPolicy(), criterion=criterion, device=device).losses


def validate_method(method: Method, settings: ExperimentSettings) -> Ranks:
    """Evaluate a method on the validation part.

    Raises:
        ValueError: no query has a relevant item in the gallery.
    """
    splits = open_splits(settings)
    found = evaluate(on_device(method, settings.device()), splits.validation, kinds=_kinds(splits.validation))
    if not found.ranks.by_kind:
        raise ValueError(
            f"data.source must have validation queries with a relevant item, got none in {splits.validation.name}"
        )
    return found.ranks


def evaluate_method(method: Method, settings: ExperimentSettings) -> tuple[Ranks, Ranks | None]:
    """Evaluate a method on the test part under the protocol of the settings.

    Returns:
        The ranks of the queries, and those of the registered picture queries if the test part's are displaced.
    """
    splits = open_splits(settings)
    encoder = on_device(method, settings.device())
    embedded: dict[str, Embedded] = {}
    found = evaluate(encoder, splits.test, protocol=splits.protocol, kinds=_kinds(splits.test), embedded=embedded).ranks
    if splits.registered is None:
        return found, None
    gallery = {splits.test.gallery_style: embedded[splits.test.gallery_style]}
    kinds = splits.registered.query_styles
    return found, evaluate(encoder, splits.registered, protocol=splits.protocol, kinds=kinds, embedded=gallery).ranks


def adapter_folder(output: Path, name: str, seed: int) -> Path:
    """Return the folder of the adapter of one run."""
    return output / ADAPTERS / f"{_NOT_IN_NAMES.sub('_', name)}-{seed}"


def trained_method(name: str, seed: int, settings: ExperimentSettings) -> Method:
    """Load the method of one run of a comparison; a method without training is built."""
    if not Variant.parse(name).is_trained:
        return create_variant(name, settings.config())
    return load_method(adapter_folder(settings.output, name, seed))


def _kinds(images: ImageSet) -> tuple[str, ...]:
    """Return every kind of query but a picture with its caption."""
    return (*images.query_styles, TEXT)
