"""Methods that make their own training steps: several losses, optimisers of their own, batches by category."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn, optim

from hystar_fast.methods.interface import Method


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


@dataclass(frozen=True)
class StepPlan:
    """The facts that a run tells a method before its first step.

    Attributes:
        categories: how many there are to train on.
        learning_rate: of the main part of the method; it has the rates of its other parts itself.
        chunk_size: pairs of a batch that are encoded at a time; 0 for all.
        bf16: encode in bfloat16 where the device has such instructions.
        seed: of everything that is drawn.
    """

    categories: int
    learning_rate: float
    chunk_size: int = 0
    bf16: bool = False
    seed: int = 0


class StepTrained(Method):
    """A method whose training is not the gradient of one loss of pairs.

    A step must depend on the parameters, the optimisers' states, the seed and its number only: a resumed run makes the
    same steps as an uninterrupted one.
    """

    @abstractmethod
    def begin(self, plan: StepPlan) -> None:
        """Create what depends on the data, and the optimisers; called once, before the modules move to a device.

        Raises:
            ValueError: a plan that the method cannot follow.
        """

    @abstractmethod
    def optimizers(self) -> Mapping[str, optim.Optimizer]:
        """Return the optimisers by name; a checkpoint holds the state of each."""

    @abstractmethod
    def step(self, batch: CategoryBatch, epoch: int, step: int) -> dict[str, float]:
        """Change the parameters by one step, both numbers from 0, and return the losses by name, with "loss".

        "loss" is what the main part minimises.
        """

    @abstractmethod
    def state(self) -> Mapping[str, nn.Module]:
        """Return the modules by name; a checkpoint holds their parameters and buffers."""

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        raise TypeError(f"method must have a loss of pairs, got {self.name!r}, which trains by its own `step`")
