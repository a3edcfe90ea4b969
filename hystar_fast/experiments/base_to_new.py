"""The base-to-new protocol of few-shot classification (Table 11 of the paper), as CoOp defines it.

The classes are taken in order. The first half (the larger one) is *base*: it is trained with a few pictures a class.
The rest is *new* and never trained. Base pictures are classified among the base classes, new pictures among the new
classes, and H = 2 B N / (B + N) is the harmonic mean of the two accuracies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.data.classes import TEST, TRAIN
from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.retrieval.metrics import Interval, bootstrap_mean

RESAMPLES = 2000


@dataclass(frozen=True)
class BaseToNew:
    """The parts of one data set.

    Attributes:
        base, new: the names of the classes of each half, in the order of the data set or, without one, alphabetically.
        training: pictures of the base classes to draw shots from.
        base_test, new_test: the test pictures of each half.
    """

    base: tuple[str, ...]
    new: tuple[str, ...]
    training: tuple[Record, ...]
    base_test: tuple[Record, ...]
    new_test: tuple[Record, ...]


def base_to_new(images: ImageSet) -> BaseToNew:
    """Split a data set of classes.

    Raises:
        ValueError: fewer than four classes, so that a half would have only one.
    """
    held = {str(record.category) for record in images.records}
    classes = [name for name in images.classes if name in held] or sorted(held)
    if len(classes) < 4:
        raise ValueError(f"data.classes must have at least 4 classes, got {len(classes)} in {images.name}")
    middle = (len(classes) + 1) // 2
    base, new = tuple(classes[:middle]), tuple(classes[middle:])
    test = images.of_style(TEST)
    return BaseToNew(
        base,
        new,
        tuple(record for record in images.of_style(TRAIN) if record.category in base),
        tuple(record for record in test if record.category in base),
        tuple(record for record in test if record.category in new),
    )


def draw_shots(records: Sequence[Record], shots: int, seed: int) -> list[Record]:
    """Draw at most `shots` pictures of each class at random, the same for the same seed.

    Raises:
        ValueError: `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Record] = []
    for name in sorted({str(record.category) for record in records}):
        held = [record for record in records if record.category == name]
        drawn += [held[i] for i in torch.randperm(len(held), generator=generator)[:shots].tolist()]
    return drawn


def is_correct(vectors: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
    """Return float64 [n]: 1 where the nearest class of a picture is its own; ties and non-finite scores count as 0."""
    scores = vectors @ classes.mT
    own = scores.gather(1, wanted[:, None])
    others = scores.scatter(1, wanted[:, None], -torch.inf)
    return (own[:, 0] > others.amax(1)).double()


@dataclass(frozen=True)
class Accuracies:
    """Accuracies on the base and the new classes, and their harmonic mean, with 95 % intervals over the pictures."""

    base: Interval
    new: Interval
    harmonic: Interval


def accuracies(base: Tensor, new: Tensor) -> Accuracies:
    """Return the accuracies of correct pictures [n] (0 or 1, or a mean over seeds).

    The interval of H resamples the pictures of both halves.
    """
    sampled = _harmonic(_resampled_means(base, 0), _resampled_means(new, 1))
    low, high = torch.quantile(sampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = _harmonic(base.double().mean(), new.double().mean()).item()
    harmonic = Interval(value, low, high, len(base) + len(new))
    return Accuracies(bootstrap_mean(base), bootstrap_mean(new), harmonic)


def _resampled_means(values: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    means = [
        values.double()[torch.randint(len(values), (len(values),), generator=generator)].mean()
        for _ in range(RESAMPLES)
    ]
    return torch.stack(means)


def _harmonic(a: Tensor, b: Tensor) -> Tensor:
    total = a + b
    return torch.where(total > 0, 2 * a * b / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
