"""Methods that make their own training steps: several losses, optimisers of their own, batches by category."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn, optim

from hystar_fast.methods.interface import Method, Role


@dataclass(frozen=True)
class Batching:
    """How a run makes the batches of a method.

    Attributes:
        of: "category" makes batches of `CategoryBatch`; "pairs" those of `PairedBatch`; "names" those of `NameBatch`;
            "captioned" those of `CaptionedBatch`.
        flip: of categories, the chance that a picture is mirrored, each for itself.
        texts: of pairs, whether captions ask for pictures; else pictures of the query styles do.
        by: of pairs, "instance" takes the query's own gallery picture, "category" another of its category each time.
        crop: of pairs, the least share of a picture's area that a random crop keeps; 1 leaves pictures as they are, so
            that their features are computed once.
        prototypes: a style whose pictures the method reads beside; empty for none.
        names: of names and captions, where they come from: "categories" or "captions" of the data set, or
            "file:<path>".
        template: of captions, with ``{}`` for the name.
        order: of captioned pictures, "shuffled" in each epoch or "listed".
        unpaired: which classes of captioned pictures lack a side: "none", "disjoint", "gallery" or "queries".
        stored: of pairs of pictures that never change, whether the method computes what it needs of each only once.
        within: whether R@1 among the gallery pictures of the query's category selects the model, in the place of
            mAP@all of the category.
    """

    of: Literal["category", "pairs", "names", "captioned"] = "category"
    flip: float = 0.0
    texts: bool = False
    by: str = "category"
    crop: float = 1.0
    prototypes: str = ""
    names: str = ""
    template: str = "{}"
    order: str = "shuffled"
    unpaired: str = "none"
    stored: bool = True
    within: bool = False

    def caption(self, name: str) -> str:
        """Return the caption of a name by `template`, with spaces for underscores."""
        return self.template.replace("{}", " ".join(name.replace("_", " ").split()))


class Processes(Protocol):
    """The processes that train together, for a method that divides a batch among them."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def share(self, count: int) -> slice:
        """Return this process's part of `count` items."""

    def gather(self, part: Tensor) -> Tensor:
        """Return the rows of every process; gradients reach this process's own."""

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients over the processes, in place."""

    def broadcast_parameters(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of process 0 to every process, in place."""


@dataclass(frozen=True)
class CategoryBatch:
    """One batch of pictures by category; row i of `targets` shows the same category as row i of `queries`.

    Attributes:
        queries: uint8 [b, 3, H, W].
        targets: uint8 [b, 3, H, W], of the gallery.
        labels: int64 [b], the number of the category.
    """

    queries: Tensor
    targets: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class PairedBatch:
    """One batch of pairs of a gallery picture and a query, which is a picture or a text.

    Attributes:
        gallery, queries: [b, 3, H, W], or texts as a list; None where the method has stored what it needs of them.
        gallery_rows, query_rows: int64 [b], their numbers among all that train.
        labels: int64 [b], the number of the category.
        instances: int64 [b], the number of the instance of the gallery picture.
        kinds: int64 [b], the number of the style of the query, from 1; 0 for a text.
    """

    gallery: Tensor | None
    queries: Tensor | list[str] | None
    gallery_rows: Tensor
    query_rows: Tensor
    labels: Tensor
    instances: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the batch with its pictures, labels, instances and kinds on a device."""
        moved = {n: getattr(self, n) for n in ("gallery", "queries", "labels", "instances", "kinds")}
        return replace(self, **{n: v.to(device) if isinstance(v, Tensor) else v for n, v in moved.items()})


@dataclass(frozen=True)
class NameBatch:
    """One batch of class names; no picture is read.

    Attributes:
        rows: int64 [b], their numbers among all that train.
    """

    rows: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the batch with its rows on a device."""
        return replace(self, rows=self.rows.to(device))


@dataclass(frozen=True)
class CaptionedBatch:
    """One batch of pictures of any style, each with its caption; of several processes, each has a part of the pictures.

    Attributes:
        pictures: uint8 [b, 3, H, W], this process's part.
        usable: bool [b], False where a picture could not be read and a black one takes its place.
        labels: int64 [B] of the whole batch, the number of the caption.
        kinds: int64 [B] of the whole batch, the number of the style, the gallery's first.
    """

    pictures: Tensor
    usable: Tensor
    labels: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class StepPlan:
    """The facts that a run tells a method before its first step.

    Attributes:
        categories: how many there are to train on.
        learning_rate: of the main part of the method; it has the rates of its other parts itself.
        chunk_size: pairs of a batch that are encoded at a time; 0 for all.
        bf16: encode in bfloat16 where the device has such instructions.
        seed: of everything that is drawn.
        weight_decay: of a method that takes it from the recipe.
        names: of the categories, by their numbers.
        unseen: categories that take no part, as the data set spells them; known for names alone.
        captions: first caption of each gallery picture that trains and has one.
        prototypes: reads the pictures of `Batching.prototypes`, uint8 [C, 3, H, W], of the instances that train.
        styles: of the pictures, the gallery's first, for a method that converts.
        means: computes the mean embedding [D] of each of these styles over the pictures that train.
        processes: that train together; None for one.
        epoch, steps: number of steps of an epoch and of the run; 0 where they are not known.
    """

    categories: int
    learning_rate: float
    chunk_size: int = 0
    bf16: bool = False
    seed: int = 0
    weight_decay: float = 0.0
    names: tuple[str, ...] = ()
    unseen: frozenset[str] = field(default=frozenset(), repr=False)
    captions: tuple[str, ...] = field(default=(), repr=False)
    prototypes: Callable[[], Tensor] | None = None
    styles: tuple[str, ...] = ()
    means: Callable[[], Mapping[str, Tensor]] | None = None
    processes: Processes | None = None
    epoch: int = 0
    steps: int = 0


class RunTooShort(ValueError):
    """A run ends before the stage that trains what the method is used for."""


class StepTrained(Method):
    """A method whose training is not the gradient of one loss of pairs.

    A step must depend on the parameters, the optimisers' states, the seed and its number only: a resumed run makes the
    same steps as an uninterrupted one.

    Attributes:
        batching: how a run makes its batches.
        follows: the entries of a recipe that it follows, of "schedule", "warmup" and "weight_decay".
        scores_from: the step from which a validation says something, such as the first of a later stage.
        divides_batches: whether several processes can share a batch.
        converts: whether it moves queries between modalities: its plan has styles and means, and its adapter the means
            of the styles at the end.
    """

    batching: Batching = Batching()
    follows: frozenset[str] = frozenset()
    scores_from: int = 0
    divides_batches: bool = False
    converts: bool = False
    _plan: StepPlan | None = None  # of `begin`

    @abstractmethod
    def begin(self, plan: StepPlan) -> None:
        """Create what depends on the data, and the optimisers; called once, before the modules move to a device.

        Raises:
            ValueError: a plan that the method cannot follow.
        """

    @abstractmethod
    def optimizers(self) -> Mapping[str, optim.Optimizer]:
        """Return the optimisers by name; a checkpoint holds the state of each."""

    def store(self, role: Role, items: Iterable[Tensor] | Iterable[list[str]]) -> None:
        """Compute once what every step needs of pictures or texts that never change, in the order of their rows.

        Raises:
            TypeError: the method stores nothing.
        """
        raise TypeError(f"method must store features of pairs, got {self.name!r}, whose batches have pictures")

    @abstractmethod
    def step(self, batch: Any, epoch: int, step: int) -> dict[str, float]:
        """Change the parameters by one step, both numbers from 0, and return the losses by name, with "loss".

        Args:
            batch: `CategoryBatch`, `PairedBatch`, `NameBatch` or `CaptionedBatch`, by `batching`.
            epoch, step: from 0.

        "loss" is what the main part minimises.
        """

    def own_score(self) -> tuple[float, dict[str, Any]]:
        """Return a score that selects the model without pictures, the larger the better, and its parts.

        Raises:
            TypeError: the method has none.
        """
        raise TypeError(f"method must score itself to be selected without pictures, got {self.name!r}")

    @abstractmethod
    def state(self) -> Mapping[str, nn.Module]:
        """Return the modules by name; a checkpoint holds their parameters and buffers."""

    def _check_not_begun(self) -> None:
        if self._plan is not None:
            raise ValueError("begin must be called once")

    def _begun(self) -> StepPlan:
        if self._plan is None:
            raise ValueError("begin must be called before the first step")
        return self._plan

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        raise TypeError(f"method must have a loss of pairs, got {self.name!r}, which trains by its own `step`")


def read_losses(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return losses as numbers; a GPU is waited for once."""
    stacked = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, stacked, strict=True))
